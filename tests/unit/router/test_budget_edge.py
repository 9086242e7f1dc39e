"""An answer at the edge of a budget: held slice by slice, and ended where no more can be held."""

import asyncio
from contextlib import aclosing

import pytest

from penstock.core.errors import (
    BudgetExceeded,
    CapacityExhausted,
    CreditExhausted,
    FailedPrecondition,
    PenstockError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from penstock.router.backends.base import AttemptFailed, Billing, Chunk
from penstock.router.events import Delta, Done, Event, Started
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_BUDGET,
    FINISH_REASON_STOP,
    ChoiceDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from support.flow_house import House, request
from support.ports import Script, limited, local_words
from support.wait import until

LOCAL_OUTPUT, PAID_OUTPUT = 2_000, 40_000
"""Nano-USD a token."""
PROMPT_BOUND = 64 + 8 + 5
PAID_PROMPT = PROMPT_BOUND * 10_000


def paid_letters(count: int, *, usage: bool = True) -> Script:
    """A byte a chunk: a token at most."""
    end = Chunk([ChoiceDelta(finish_reason=FINISH_REASON_STOP)])
    told = [Chunk(usage=Usage(prompt_tokens=10, completion_tokens=count))] if usage else []
    return [*[Chunk([ChoiceDelta(content="x")]) for _ in range(count)], end, *told]


def deltas(events: list[Event]) -> list[ChoiceDelta]:
    return [delta for event in events if isinstance(event, Delta) for delta in event.deltas]


def text(events: list[Event]) -> str:
    return "".join(delta.content for delta in deltas(events))


def ends(events: list[Event]) -> list[tuple[int, int]]:
    return [(d.index, d.finish_reason) for d in deltas(events) if d.finish_reason]


async def test_a_short_answer_needs_one_reserve_and_no_extension():
    house = House(local=local_words(5), slice_tokens=20)
    await house.run(request())
    assert [] == house.ledger.extends
    (held,) = house.ledger.reserves
    assert PROMPT_BOUND * 1_000 + 20 * LOCAL_OUTPUT == held.amount_nano_usd
    assert PROMPT_BOUND + 20 == held.tokens


@pytest.mark.parametrize(("slice_tokens", "model"), [(0, "auto"), (100, "auto"), (20, "thinker")])
async def test_the_whole_bound_is_held_up_front(slice_tokens, model):
    house = House(slice_tokens=slice_tokens)
    model = "acme/thinker" if model == "thinker" else "local/small"
    await house.run(request(model))
    bound = 500 if model == "acme/thinker" else 100
    assert [PROMPT_BOUND + bound] == [r.tokens for r in house.ledger.reserves]
    assert [] == house.ledger.extends


async def test_what_is_sent_upstream_is_never_shrunk_to_a_slice():
    house = House(slice_tokens=10)
    await house.run(request())
    assert [100] == [c.input.max_tokens for c in house.local.calls]


async def test_a_long_answer_is_extended_to_absolute_totals_and_ends_by_itself():
    house = House(local=local_words(60), slice_tokens=20)
    events = await house.run(request())
    totals = [e.tokens - PROMPT_BOUND for e in house.ledger.extends]
    assert [40, 60, 80] == totals
    assert [PROMPT_BOUND * 1_000 + n * LOCAL_OUTPUT for n in totals] == [
        e.amount_nano_usd for e in house.ledger.extends
    ]
    assert all(60_000 < e.ttl_ms <= 120_000 for e in house.ledger.extends)
    assert [(0, FINISH_REASON_STOP)] == ends(events)
    assert 10 * 1_000 + 60 * LOCAL_OUTPUT == house.ledger.posted_nano_usd
    assert {} == house.ledger.held


async def test_the_extension_is_asked_for_ahead_and_the_stream_does_not_wait_for_it():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension_gate = asyncio.Event()
    got: list[Event] = []

    async def read() -> None:
        async with aclosing(house.flow.run(request())) as events:
            async for event in events:
                got.append(event)  # noqa: PERF401  seen while it grows

    reading = asyncio.create_task(read())
    # A token for the end of the text is held back: the answer's own are 19.
    await until(lambda: len(text(got).split()) == 19)
    assert 1 == len(house.ledger.extends)
    assert not reading.done()
    house.ledger.extension_gate.set()
    await reading
    assert 60 == len(text(got).split())


@pytest.mark.parametrize(
    "refusal",
    [
        BudgetExceeded("spent"),
        CreditExhausted("no credit"),
        limited("key", unit="tokens"),
        limited("pool", unit="tokens"),
        FailedPrecondition("gone", reason="RESERVATION_EXPIRED"),
    ],
    ids=lambda e: e.reason,
)
async def test_a_refused_extension_ends_the_answer_where_the_hold_ends(refusal: PenstockError):
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = refusal
    events = await house.run(request())
    assert [Started, Done] == [type(events[0]), type(events[-1])]
    assert 19 == len(text(events).split())
    assert [(0, FINISH_REASON_BUDGET)] == ends(events)
    assert 1 == house.local.closed_early
    assert 10 * 1_000 + 19 * LOCAL_OUTPUT == house.ledger.posted_nano_usd
    receipt = events[-1].receipt
    assert house.ledger.posted_nano_usd == receipt.cost_nano_usd
    assert [refusal.reason] == [a.outcome for a in receipt.attempts]
    assert [refusal.reason] == [s.outcome for s in house.ledger.settled]
    assert 1 == len(house.ledger.extends)
    assert ({}, []) == (house.ledger.held, house.ledger.overages)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "refusal",
    [
        Unauthenticated("not any more", reason="KEY_REVOKED"),
        Unauthenticated("not any more", reason="KEY_EXPIRED"),
        PermissionDenied("not any more", reason="ACCOUNT_SUSPENDED"),
    ],
    ids=lambda refusal: refusal.reason,
)
async def test_a_key_that_may_not_go_on_ends_the_answer_as_its_error_and_not_as_a_budget(
    refusal: PenstockError, stream: bool
):
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = refusal
    events: list[Event] = []

    async def read() -> None:
        async with aclosing(house.flow.run(request(stream=stream))) as flow:
            async for event in flow:
                events.append(event)  # noqa: PERF401  what came before the error

    with pytest.raises(PenstockError) as ended:
        await read()
    assert ended.value is refusal
    assert (19 if stream else 0, []) == (len(text(events).split()), ends(events))
    assert 1 == house.local.closed_early
    assert 10 * 1_000 + 19 * LOCAL_OUTPUT == house.ledger.posted_nano_usd
    assert str(house.ledger.posted_nano_usd) == ended.value.metadata["cost_nano_usd"]
    assert [refusal.reason] == [s.outcome for s in house.ledger.settled]
    assert [] == house.paid.calls
    assert (1, {}, []) == (len(house.ledger.extends), house.ledger.held, house.ledger.overages)


async def test_every_operation_says_which_key_reserved():
    house = House(local=local_words(60), slice_tokens=20)
    await house.run(request())
    (reserve,), (settle,) = house.ledger.reserves, house.ledger.settled
    assert reserve.key_id
    assert {reserve.key_id} == {settle.key_id, *(e.key_id for e in house.ledger.extends)}
    full = AttemptFailed(CapacityExhausted("full"), billing=Billing.NOTHING, fall_back=True)
    failed = House(paid=[full], slice_tokens=20)
    with pytest.raises(CapacityExhausted):
        await failed.run(request("acme/large"))
    assert [reserve.key_id] == [v.key_id for v in failed.ledger.voided]


async def test_the_upstream_has_stopped_before_the_client_is_told():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    async with aclosing(house.flow.run(request())) as events:
        async for event in events:
            if isinstance(event, Delta) and event.deltas[0].finish_reason:
                assert 1 == house.local.closed_early
                assert event.deltas[0].finish_reason == FINISH_REASON_BUDGET


async def test_a_paid_answer_that_was_cut_is_charged_the_bound_of_what_was_delivered():
    house = House(paid=paid_letters(300), slice_tokens=50)
    house.ledger.extension = BudgetExceeded("spent")
    events = await house.run(request("acme/large"))
    assert "x" * 49 == text(events)
    assert PAID_PROMPT + 49 * PAID_OUTPUT == house.ledger.posted_nano_usd
    (settled,) = house.ledger.settled
    assert settled.usage.estimated
    assert (PROMPT_BOUND, 49) == (settled.usage.prompt_tokens, settled.usage.completion_tokens)
    assert [] == house.ledger.overages


async def test_who_does_not_stream_gets_what_was_paid_for_and_the_same_reason():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    events = await house.run(request(stream=False))
    assert 19 == len(text(events).split())
    assert [(0, FINISH_REASON_BUDGET)] == ends(events)
    assert [] == house.paid.calls


async def test_each_choice_that_goes_on_is_ended_and_no_other():
    script = [
        Chunk([ChoiceDelta(index=0, content="ab")]),
        Chunk([ChoiceDelta(index=0, finish_reason=FINISH_REASON_STOP)]),
        *[Chunk([ChoiceDelta(index=1, content="x")]) for _ in range(40)],
    ]
    house = House(paid=script, slice_tokens=10)
    house.ledger.extension = BudgetExceeded("spent")
    events = await house.run(request("acme/large", n=3, max_tokens=100))
    assert [(0, FINISH_REASON_STOP), (1, FINISH_REASON_BUDGET), (2, FINISH_REASON_BUDGET)] == ends(
        events
    )
    # Two bytes, the end of choice 0, and room for two more ends.
    assert 10 - 2 - 1 - 2 == text(events).count("x")


@pytest.mark.parametrize(
    "delta",
    [
        ChoiceDelta(tool_calls=[ToolCallDelta(name="f", arguments_json='{"a": "bcdefghijk"}')]),
        ChoiceDelta(content="x", logprobs=[TokenLogprob(token="x")] * 20),
        ChoiceDelta(content="ä" * 10),
    ],
    ids=["tool call", "logprobs", "bytes"],
)
async def test_a_piece_is_weighed_by_all_that_it_carries(delta: ChoiceDelta):
    house = House(paid=[Chunk([ChoiceDelta(content="x")]), Chunk([delta]), None], slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    events = await house.run(request("acme/large"))
    assert [ChoiceDelta(content="x"), ChoiceDelta(finish_reason=FINISH_REASON_BUDGET)] == deltas(
        events
    )
    assert PAID_PROMPT + PAID_OUTPUT == house.ledger.posted_nano_usd


async def test_a_piece_larger_than_a_slice_is_covered_before_it_is_handed_on():
    house = House(paid=[Chunk([ChoiceDelta(content="x" * 70)]), *paid_letters(1)], slice_tokens=20)
    events = await house.run(request("acme/large"))
    assert "x" * 71 == text(events)
    assert 70 + 1 + 20 == house.ledger.extends[0].tokens - PROMPT_BOUND


async def test_an_answer_that_fits_into_what_is_held_ends_by_itself_after_a_refusal():
    house = House(local=local_words(19), slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    events = await house.run(request())
    assert 1 == len(house.ledger.extends)
    assert [(0, FINISH_REASON_STOP)] == ends(events)
    assert ["ok"] == [a.outcome for a in events[-1].receipt.attempts]
    assert [] == house.ledger.overages


async def test_an_answer_that_was_cut_is_not_stored_and_the_next_waiter_leads():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    await house.run(request(temperature=0))
    assert {} == house.answers.entries
    assert ["flight-1"] == [a.flight_token for a in house.answers.abandoned]


async def test_a_ledger_that_is_away_when_more_is_needed_ends_the_stream_as_its_error():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    with pytest.raises(Unavailable):
        await house.run(request())
    assert 10 * 1_000 + 19 * LOCAL_OUTPUT == house.ledger.posted_nano_usd
    assert [] == house.ledger.overages


async def test_an_extension_without_an_answer_is_asked_for_again_when_it_is_needed():
    house = House(local=local_words(30), slice_tokens=20)
    house.ledger.extension_faults = [Unavailable("away", reason="LEDGER_UNAVAILABLE")]
    events = await house.run(request())
    assert 30 == len(text(events).split())
    assert [40, 41] == [e.tokens - PROMPT_BOUND for e in house.ledger.extends]


async def test_a_key_that_fails_open_goes_on_locally_and_is_counted():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    events = await house.run(request(fail_open=True))
    assert 60 == len(text(events).split())
    assert 1 == house.metrics.registry.get_sample_value("penstock_fail_open_total")
    assert 10 * 1_000 + 60 * LOCAL_OUTPUT == house.ledger.posted_nano_usd


async def test_a_hang_up_while_the_extension_is_awaited_bills_what_was_delivered():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension_gate = asyncio.Event()
    seen: list[Event] = []

    async def read() -> None:
        async for event in house.flow.run(request()):
            seen.append(event)  # noqa: PERF401  seen while it grows

    reading = asyncio.create_task(read())
    await until(lambda: len(text(seen).split()) == 19)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await house.flow.drain()
    assert 10 * 1_000 + 19 * LOCAL_OUTPUT == house.ledger.posted_nano_usd
    assert {} == house.ledger.held


async def test_an_attempt_whose_first_slice_fits_is_tried_where_its_whole_bound_would_not():
    first = PROMPT_BOUND * 1_000 + 20 * LOCAL_OUTPUT
    house = House(local=local_words(10), limit_nano_usd=first, slice_tokens=20)
    assert 10 == len(text(await house.run(request())).split())


async def test_budget_ends_are_counted():
    house = House(local=local_words(60), slice_tokens=20)
    house.ledger.extension = BudgetExceeded("spent")
    await house.run(request())
    labels = {"provider": "local", "reason": "BUDGET_EXCEEDED"}
    assert 1 == house.metrics.registry.get_sample_value("penstock_budget_ends_total", labels)
