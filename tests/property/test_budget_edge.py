"""Whatever the pieces of an answer and whatever the budget: nothing beyond what is held is handed
on, what was delivered is what is charged, and `budget` is said where, and only where, an extension
was refused that the answer needed.
"""

import asyncio

from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.router.backends.base import Chunk
from penstock.router.estimate import delivered_tokens_max
from penstock.router.events import Delta, Done, Event
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_BUDGET,
    FINISH_REASON_STOP,
    ChoiceDelta,
    ToolCallDelta,
    Usage,
)
from support.flow_house import House, request

PROMPT_BOUND = 64 + 8 + 5
"""Also what is counted: with a smaller prompt there would be slack for what is delivered."""
BOUND = {"local/small": 100, "acme/large": 500}
PRICE = {"local/small": (1_000, 2_000), "acme/large": (10_000, 40_000)}


class Watched(House):
    """Sees at each event what is held and what the client has."""

    async def run_watched(self, model: str, choices: int, *, stream: bool) -> list[Event]:
        events: list[Event] = []
        async for event in self.flow.run(request(model, n=choices, stream=stream)):
            events.append(event)
            if stream and isinstance(event, Delta):
                (held,) = self.ledger.held.values()
                said = self.bound_of(model, events, count_budget_ends=False)
                assert said <= held.amount_nano_usd
        return events

    def bound_of(self, model: str, events: list[Event], *, count_budget_ends: bool) -> int:
        """Of what was delivered, from the outside: the whole input, and each delta's bound; on our
        own replicas the scripts count in words.
        """
        into, out = PRICE[model]
        deltas = [d for e in events if isinstance(e, Delta) for d in e.deltas]
        if not count_budget_ends:
            deltas = [d for d in deltas if d.finish_reason != FINISH_REASON_BUDGET]
        if model == "local/small":
            tokens = sum(len(d.content.split()) for d in deltas)
            return PROMPT_BOUND * into + tokens * out if deltas else 0
        tokens = min(sum(delivered_tokens_max(d) for d in deltas), BOUND[model])
        return PROMPT_BOUND * into + tokens * out


def paid_piece(text: str, index: int, kind: str) -> ChoiceDelta:
    if kind == "tool":
        call = ToolCallDelta(index=0, name="f", arguments_json=text)
        return ChoiceDelta(index=index, tool_calls=[call])
    return ChoiceDelta(index=index, content=text)


pieces = st.lists(
    st.tuples(
        st.text("aä€😀", min_size=0, max_size=12),
        st.integers(0, 2),
        st.sampled_from(["text", "tool"]),
    ),
    max_size=40,
)


def end_of(index: int) -> Chunk:
    return Chunk([ChoiceDelta(index=index, finish_reason=FINISH_REASON_STOP)])


def paid_script(told: list[tuple[str, int, str]], choices: int, *, usage: bool) -> list[Chunk]:
    """Each choice ends after its last piece; one that says nothing, at the end."""
    script: list[Chunk] = []
    lasts = {index % choices: at for at, (_, index, _) in enumerate(told)}
    for at, (text, index, kind) in enumerate(told):
        script.append(Chunk([paid_piece(text, index % choices, kind)]))
        if lasts[index % choices] == at:
            script.append(end_of(index % choices))
    script += [end_of(index) for index in range(choices) if index not in lasts]
    spoken = sum(len(text) for text, _, _ in told)
    return (
        [*script, Chunk(usage=Usage(prompt_tokens=PROMPT_BOUND, completion_tokens=spoken))]
        if usage
        else script
    )


def check(house: Watched, model: str, events: list[Event], choices: int) -> None:
    assert isinstance(events[-1], Done)
    ledger, receipt = house.ledger, events[-1].receipt
    deltas = [d for e in events if isinstance(e, Delta) for d in e.deltas]
    cut = any(d.finish_reason == FINISH_REASON_BUDGET for d in deltas)
    assert ledger.posted_nano_usd == receipt.cost_nano_usd
    assert ledger.posted_nano_usd <= ledger.limit_nano_usd
    assert ({}, []) == (ledger.held, ledger.overages)
    # Each choice ends once, for whatever reason.
    ended = sorted(d.index for d in deltas if d.finish_reason)
    assert list(range(choices)) == ended
    if cut:
        assert ledger.refused_extensions
        assert house.bound_of(model, events, count_budget_ends=False) == ledger.posted_nano_usd
        assert ["BUDGET_EXCEEDED"] == [a.outcome for a in receipt.attempts]
        assert {} == house.answers.entries
    else:
        assert ["ok"] == [a.outcome for a in receipt.attempts]


@settings(max_examples=300, deadline=None)
@given(
    told=pieces,
    choices=st.integers(1, 3),
    slice_tokens=st.integers(1, 20) | st.integers(1, 120),
    room=st.integers(0, 30) | st.integers(0, 600),
    usage=st.booleans(),
    stream=st.booleans(),
)
def test_a_paid_answer_is_never_delivered_or_charged_beyond_what_is_held(
    told: list[tuple[str, int, str]], choices: int, slice_tokens: int, room: int, *, usage: bool,
    stream: bool,
) -> None:  # fmt: skip
    model = "acme/large"
    limit = PROMPT_BOUND * 10_000 + min(slice_tokens, 500) * 40_000 + room * 40_000
    script = paid_script(told, choices, usage=usage)
    house = Watched(paid=script, limit_nano_usd=limit, slice_tokens=slice_tokens)
    events = asyncio.run(house.run_watched(model, choices, stream=stream))
    check(house, model, events, choices)
    whole = [d for c in script for d in c.deltas]
    if not house.ledger.refused_extensions:
        assert whole == [d for e in events if isinstance(e, Delta) for d in e.deltas]


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.integers(0, 9), max_size=30),
    slice_tokens=st.integers(1, 10) | st.integers(1, 60),
    room=st.integers(0, 10) | st.integers(0, 120),
    extra=st.integers(0, 1),
    joined=st.booleans(),
    stream=st.booleans(),
)
@example(words=[5, 15], slice_tokens=20, room=0, extra=1, joined=False, stream=True)
@example(words=[5, 15], slice_tokens=20, room=0, extra=1, joined=True, stream=True)
@example(words=[5, 16], slice_tokens=20, room=0, extra=0, joined=True, stream=True)
def test_a_local_answer_is_charged_exactly_the_words_that_were_delivered(
    words: list[int],
    slice_tokens: int,
    room: int,
    extra: int,
    *,
    joined: bool,
    stream: bool,
) -> None:
    """`extra`: the engine counts the end-of-text token that it does not show. `joined`: the last
    words, the end and the count come in one message.
    """
    model, spoken = "local/small", 0
    script: list[Chunk] = []
    for count in words:
        if spoken + count > BOUND[model] - 1:
            break
        spoken += count
        delta = ChoiceDelta(content="w " * count)
        script.append(Chunk([delta], prompt_tokens=PROMPT_BOUND, completion_tokens_so_far=spoken))
    usage = Usage(prompt_tokens=PROMPT_BOUND, completion_tokens=spoken + extra)
    if joined and script:
        said = script.pop().deltas[0].content
        end = ChoiceDelta(content=said, finish_reason=FINISH_REASON_STOP)
        script.append(Chunk([end], usage, PROMPT_BOUND, spoken))
    else:
        script.append(
            Chunk([ChoiceDelta(finish_reason=FINISH_REASON_STOP)], prompt_tokens=PROMPT_BOUND)
        )
        script.append(Chunk(usage=usage))
    limit = PROMPT_BOUND * 1_000 + (slice_tokens + room) * 2_000
    house = Watched(local=script, limit_nano_usd=limit, slice_tokens=slice_tokens)
    events = asyncio.run(house.run_watched(model, 1, stream=stream))
    check(house, model, events, 1)
    if "ok" == events[-1].receipt.attempts[0].outcome:
        assert PROMPT_BOUND * 1_000 + (spoken + extra) * 2_000 == house.ledger.posted_nano_usd
