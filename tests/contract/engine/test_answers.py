"""What every engine answers. Never asserts exact greedy text: a near-tie falls either way."""

import json
import math

import jsonschema
import pytest

from contract.engine.asking import LONG_STORY, ask, collect
from contract.engine.rigs import CONTEXT_TOKENS
from penstock.core.errors import InvalidRequest
from penstock.local.engines.base import CONTEXT_LENGTH_EXCEEDED, Engine
from penstock.type.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_streams_pieces_then_exactly_one_usage(engine: Engine) -> None:
    answer = await collect(engine.generate(ask(LONG_STORY), request_id="a"))
    assert [d.usage is not None for d in answer.deltas[:-1]] == [False] * (len(answer.deltas) - 1)
    assert answer.usage.completion_tokens == 16
    assert len(answer.pieces()) > 4
    assert answer.text().strip()


async def test_running_totals_grow_to_the_usage(engine: Engine) -> None:
    answer = await collect(engine.generate(ask(LONG_STORY), request_id="a"))
    totals = [d.completion_tokens for d in answer.deltas]
    assert totals == sorted(totals)
    assert totals[-1] == answer.usage.completion_tokens
    prompt_tokens = {d.prompt_tokens for d in answer.deltas if d.choices}
    assert prompt_tokens == {answer.usage.prompt_tokens}


async def test_max_tokens_ends_with_length(engine: Engine) -> None:
    answer = await collect(engine.generate(ask(LONG_STORY, max_tokens=5), request_id="a"))
    assert answer.usage.completion_tokens == 5
    assert answer.finish_reason() == chat_pb2.FINISH_REASON_LENGTH


async def test_choices_are_summed_and_the_prompt_counted_once(engine: Engine) -> None:
    one = await collect(engine.generate(ask(LONG_STORY, max_tokens=6), request_id="a"))
    three = await collect(
        engine.generate(ask(LONG_STORY, max_tokens=6, n=3, temperature=1.0), request_id="b")
    )
    assert three.usage.completion_tokens == 18
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert {c.index for d in three.deltas for c in d.choices} == {0, 1, 2}
    assert three.deltas[-1].completion_tokens == 18


async def test_stop_ends_before_the_sequence(engine: Engine) -> None:
    stopped = await collect(
        engine.generate(ask(LONG_STORY, max_tokens=64, stop=[" the"]), request_id="a")
    )
    assert " the" not in stopped.text()
    assert stopped.finish_reason() == chat_pb2.FINISH_REASON_STOP
    assert stopped.usage.completion_tokens < 64


async def test_each_choice_ends_at_its_own_stop_sequence(engine: Engine) -> None:
    chat = ask(LONG_STORY, max_tokens=48, stop=[" the", "."], n=3, temperature=1.0)
    answer = await collect(engine.generate(chat, request_id="a"))
    for index in range(3):
        assert not [s for s in chat.stop if s in answer.text(index)]
        pieces = [c for c in answer.pieces(index) if c.finish_reason]
        assert len(pieces) == 1
    assert answer.usage.completion_tokens <= 3 * 48
    assert engine.stats().running == 0


async def test_json_schema_is_obeyed(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "old": {"type": "boolean"}},
        "required": ["colour", "old"],
        "additionalProperties": False,
    }
    wanted = chat_pb2.ResponseFormat(
        kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, schema_json=json.dumps(schema)
    )
    answer = await collect(
        engine.generate(
            ask("Describe a boat.", max_tokens=200, response_format=wanted), request_id="a"
        )
    )
    jsonschema.validate(json.loads(answer.text()), schema)


@pytest.mark.parametrize("schema", ["{", '{"enum": []}'])
async def test_a_schema_that_cannot_be_met_is_refused_by_name(engine: Engine, schema: str) -> None:
    wanted = chat_pb2.ResponseFormat(
        kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, schema_json=schema
    )
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(ask("Hi", response_format=wanted), request_id="a"))
    assert [v.field for v in caught.value.violations] == ["input.response_format.schema_json"]


async def test_logprobs_come_for_each_token(engine: Engine) -> None:
    answer = await collect(
        engine.generate(
            ask(LONG_STORY, max_tokens=6, logprobs=True, top_logprobs=2), request_id="a"
        )
    )
    tokens = [t for c in answer.pieces() for t in c.logprobs]
    assert len(tokens) == answer.usage.completion_tokens == 6
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) >= 2
        assert math.fsum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001
    # Greedy: what was taken is the likeliest, but for ties.
    assert tokens[0].logprob == pytest.approx(
        max(t.logprob for t in tokens[0].top_logprobs), abs=1e-3
    )


@pytest.mark.parametrize("raw", [False, True], ids=["messages", "prompt"])
async def test_logprobs_come_without_alternatives_where_none_is_asked_for(
    engine: Engine, raw: bool
) -> None:
    fields = {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 0}
    chat = chat_pb2.ChatInput(prompt="The sea", **fields) if raw else ask("The sea", **fields)
    answer = await collect(engine.generate(chat, request_id="a"))
    tokens = [t for c in answer.pieces() for t in c.logprobs]
    assert len(tokens) == 4
    assert [list(t.top_logprobs) for t in tokens] == [[]] * 4


async def test_a_seed_repeats_a_sampled_answer(engine: Engine) -> None:
    async def sample(seed: int) -> str:
        chat = ask(LONG_STORY, temperature=1.5, seed=seed, max_tokens=12)
        return (await collect(engine.generate(chat, request_id="a"))).text()

    # The first reads the prompt, the others find it in the cache: only these compare.
    await sample(7)
    samples = [await sample(7), await sample(7), await sample(8), await sample(2**40 + 9)]
    assert samples[0] == samples[1]
    assert len(set(samples)) > 1


async def test_a_raw_prompt_is_continued_without_template(engine: Engine) -> None:
    raw = chat_pb2.ChatInput(prompt="The sea is", max_tokens=8, temperature=0)
    answer = await collect(engine.generate(raw, request_id="a"))
    chat = await collect(engine.generate(ask("The sea is", max_tokens=8), request_id="b"))
    assert answer.usage.completion_tokens == 8
    assert answer.text()
    assert answer.usage.prompt_tokens < chat.usage.prompt_tokens


async def test_a_raw_prompt_with_tools_is_refused_by_name(engine: Engine) -> None:
    raw = chat_pb2.ChatInput(prompt="The sea is", max_tokens=8)
    raw.tools.add(name="weather")
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(raw, request_id="a"))
    assert caught.value.violations[0].field == "input.tools"


@pytest.mark.parametrize("raw", [False, True], ids=["messages", "prompt"])
async def test_a_prompt_over_the_context_is_refused_by_name_and_limit(
    engine: Engine, raw: bool
) -> None:
    text = "word " * (CONTEXT_TOKENS + 500)
    chat = chat_pb2.ChatInput(prompt=text, max_tokens=8) if raw else ask(text)
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(chat, request_id="a"))
    assert caught.value.reason == CONTEXT_LENGTH_EXCEEDED
    assert caught.value.violations[0].field == ("input.prompt" if raw else "input.messages")
    assert caught.value.metadata["context_tokens"] == str(CONTEXT_TOKENS)
    assert int(caught.value.metadata["prompt_tokens"]) > CONTEXT_TOKENS


async def test_an_image_is_refused_by_name(engine: Engine) -> None:
    chat = ask("What is this?")
    chat.messages[0].content.add().image_url.url = "data:image/png;base64,AAAA"
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(chat, request_id="a"))
    assert caught.value.violations[0].field == "input.messages[0].content[1].image_url"


async def test_history_with_tool_calls_is_taken(engine: Engine) -> None:
    chat = ask("What is the weather in Rome?")
    chat.tools.add(name="weather", description="of a city", parameters_json='{"type":"object"}')
    called = chat.messages.add(role=chat_pb2.ROLE_ASSISTANT)
    called.tool_calls.add(id="call_1", name="weather", arguments_json='{"city":"Rome"}')
    told = chat.messages.add(role=chat_pb2.ROLE_TOOL, tool_call_id="call_1")
    told.content.add(text="sunny")
    answer = await collect(engine.generate(chat, request_id="a"))
    assert answer.usage.completion_tokens >= 1
