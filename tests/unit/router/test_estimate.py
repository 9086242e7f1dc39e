import pytest

from penstock.core.catalogue import Template
from penstock.core.money import Price
from penstock.router.backends.base import Billing, Chunk
from penstock.router.estimate import Meter, prompt_tokens_max
from penstock.type.v1.chat_pb2 import (
    ChatInput,
    ChoiceDelta,
    ContentPart,
    ImageUrl,
    Message,
    Tool,
    ToolCallDelta,
    Usage,
)
from support.chat import chat

PRICE = Price(10_000_000_000, 5_000_000_000, 40_000_000_000)  # 10, 5 and 40 USD a million tokens
PLAIN = Template(tokens_base=10, tokens_per_message=3)


def bound(chat_input: ChatInput, image: int | None = None, context: int = 10_000) -> int | None:
    return prompt_tokens_max(
        chat_input, template=PLAIN, context_tokens=context, image_tokens_max=image
    )


def meter(*, counted: bool = False, reasoning: bool = False) -> Meter:
    return Meter(
        PRICE,
        prompt_tokens_bound=100,
        completion_tokens_bound=50,
        counted=counted,
        reasoning=reasoning,
    )


def delta(text: str) -> Chunk:
    return Chunk([ChoiceDelta(content=text)])


def test_text_is_bounded_by_its_utf8_bytes():
    assert 10 + 3 + 6 == bound(chat("日本"))


def test_tools_and_schemas_count():
    plain = bound(chat("x"))
    tool = Tool(name="f", description="d", parameters_json='{"type":"object"}')
    assert plain + 32 + 1 + 1 + 17 == bound(chat("x", tools=[tool]))


def test_no_prompt_is_longer_than_the_context():
    assert 50 == bound(chat("x" * 1000), context=50)


def test_an_image_of_unknown_size_cannot_be_bounded():
    image = Message(role=3, content=[ContentPart(image_url=ImageUrl(url="https://x/y.png"))])
    assert bound(ChatInput(messages=[image])) is None
    assert 10 + 3 + 85 == bound(ChatInput(messages=[image]), image=85)


def test_a_reported_usage_is_charged_as_it_is():
    m = meter()
    m.add(delta("hello"))
    m.add(Chunk(usage=Usage(prompt_tokens=10, cached_prompt_tokens=4, completion_tokens=3)))
    used = m.used()
    assert 6 * 10_000 + 4 * 5_000 + 3 * 40_000 == used.amount_nano_usd
    assert not used.usage.estimated


def test_a_cancelled_paid_stream_is_charged_its_input_and_the_bound_of_what_was_delivered():
    m = meter()
    m.add(delta("héllo"))  # six bytes
    used = m.used()
    assert (100, 6, True) == (
        used.usage.prompt_tokens,
        used.usage.completion_tokens,
        used.usage.estimated,
    )
    assert 100 * 10_000 + 6 * 40_000 == used.amount_nano_usd


def test_many_deltas_are_not_billed_as_one():
    m = Meter(PRICE, prompt_tokens_bound=1, completion_tokens_bound=1000, counted=False)
    for _ in range(806):
        m.add(delta(""))
    assert 806 == m.used().usage.completion_tokens


def test_the_bound_never_exceeds_the_hold():
    m = meter()
    m.add(delta("x" * 500))
    assert 50 == m.used().usage.completion_tokens


def test_a_broken_stream_of_a_reasoning_model_is_charged_its_whole_hold():
    m = meter(reasoning=True)
    m.sent()
    assert 50 == m.used().usage.completion_tokens


def test_a_local_stream_is_charged_by_the_engines_count():
    m = meter(counted=True)
    m.add(Chunk([ChoiceDelta(content="x" * 40)], prompt_tokens=12, completion_tokens_so_far=9))
    used = m.used()
    assert (12, 9, False) == (
        used.usage.prompt_tokens,
        used.usage.completion_tokens,
        used.usage.estimated,
    )


def test_an_attempt_that_never_left_is_charged_nothing():
    assert Usage() == meter().used().usage
    assert Usage() == meter(reasoning=True).used(Billing.UNKNOWN).usage


def test_an_attempt_that_never_began_is_charged_nothing():
    assert Usage() == meter().used(Billing.NOTHING).usage


@pytest.mark.parametrize(
    "report",
    [
        Usage(prompt_tokens=1, cached_prompt_tokens=2),
        Usage(prompt_tokens=-1),
        Usage(prompt_tokens=1, completion_tokens=-5, reasoning_tokens=-6),
        Usage(prompt_tokens=5, completion_tokens=1, reasoning_tokens=2),
        Usage(prompt_tokens=2**62, completion_tokens=1),
        Usage(prompt_tokens=1, completion_tokens=2**62),
    ],
)
def test_an_impossible_report_is_worth_no_more_than_none(report):
    m = meter()
    m.add(Chunk(usage=report))
    assert not m.reported
    assert m.used().usage.estimated


def test_the_arguments_of_tool_calls_are_output():
    m = meter()
    m.add(Chunk([ChoiceDelta(tool_calls=[ToolCallDelta(name="ab", arguments_json='{"a":1}')])]))
    assert 9 == m.used().usage.completion_tokens
