import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from penstock.core.assemble import PIECE_CHARACTERS
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import (
    Cancelled,
    CapacityExhausted,
    DeadlineExceeded,
    Unavailable,
    UpstreamFailed,
)
from penstock.router import running as limits
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.running import Registry, Running
from penstock.router.v1.router_pb2 import Receipt
from penstock.type.v1.chat_pb2 import ChoiceDelta, Usage
from support.wait import until

STARTED = Started("req_1", "local", "small", 1)
DONE = Done(Usage(), Receipt())
Flow = AsyncGenerator[Event, None]


def delta(text: str = "a") -> Delta:
    return Delta([ChoiceDelta(content=text)])


def started(flow: Flow, seconds: float = 10) -> Running:
    return Running(flow, Deadline.after(seconds, SystemClock()))


class Script:
    """A flow in the test's hand: it yields what is put, and remembers how it ended."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.given = 0
        self.ended: BaseException | str | None = None

    async def flow(self, tidy: Callable[[], asyncio.Future[None]] | None = None) -> Flow:
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event  # noqa: TRY301 - the script says so
                self.given += 1
                yield event
            if tidy is not None:
                await tidy()
            self.ended = "whole"
        except BaseException as error:
            self.ended = error
            raise

    def put(self, *events: Event | Exception | None) -> None:
        for event in events:
            self.events.put_nowait(event)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas gather for longer than any test takes: what comes out did not wait for the time."""
    monkeypatch.setattr(limits, "COALESCE_SECONDS", 3600)


@pytest.mark.usefixtures("patient")
async def test_first_token_comes_at_once_and_then_deltas_gather_until_the_end(
    script: Script,
) -> None:
    running = started(script.flow())
    script.put(STARTED)
    assert [STARTED] == await running.batch()
    script.put(delta("first"))
    assert [delta("first")] == await running.batch()
    gathering = asyncio.create_task(running.batch())
    for given in (12, 22):
        script.put(*[delta()] * 10)
        await until(lambda given=given: script.given == given)
        assert not gathering.done()
    script.put(DONE, None)
    assert [*[delta()] * 20, DONE] == await gathering
    assert [] == await running.batch()


async def test_what_gathered_goes_out_by_itself(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COALESCE_SECONDS", 0.001)
    running = started(script.flow())
    script.put(STARTED, delta())
    await until(lambda: script.given == 2)
    await running.batch()
    script.put(delta("b"))
    assert [delta("b")] == await running.batch()
    running.close()


@pytest.mark.usefixtures("patient")
async def test_a_message_holds_so_much_text_and_a_full_one_is_not_held_back(
    script: Script,
) -> None:
    half = "a" * (PIECE_CHARACTERS // 2)
    running = started(script.flow())
    script.put(STARTED, delta())
    await until(lambda: script.given == 2)
    assert [STARTED, delta()] == await running.batch()
    script.put(*[delta(half)] * 5)
    assert [delta(half)] * 2 == await running.batch()
    await until(lambda: script.given == 7)
    assert [delta(half)] * 2 == await running.batch()
    gathering = asyncio.create_task(running.batch())
    script.put(delta("b"))
    await until(lambda: script.given == 8)
    assert not gathering.done()
    script.put(DONE, None)
    assert [delta(half), delta("b"), DONE] == await gathering


async def test_error_comes_after_what_came_before_it(script: Script) -> None:
    running = started(script.flow())
    script.put(STARTED, delta(), UpstreamFailed("down"))
    await until(lambda: script.ended)
    assert [STARTED, delta()] == await running.batch()
    for _ in range(2):
        with pytest.raises(UpstreamFailed):
            await running.batch()


async def test_slow_reader_holds_the_upstream_back(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAITING_MAX", 5)
    running = started(script.flow())
    script.put(STARTED, *[delta()] * 20, DONE, None)
    await until(lambda: script.given == 5)
    # It would be given more at once: it is the flow that does not ask for it.
    assert (5, 18) == (script.given, script.events.qsize())
    read = []
    while batch := await running.batch():
        assert len(batch) <= 6
        read += batch
    assert 22 == len(read)


async def test_close_cancels_the_flow_once_and_lets_it_tidy_up(script: Script) -> None:
    running = started(script.flow())
    script.put(STARTED)
    await running.batch()
    running.close()
    running.close()
    with pytest.raises(Cancelled):
        await running.batch()
    assert isinstance(script.ended, asyncio.CancelledError)


async def test_a_flow_that_is_closed_before_its_first_step_ends_all_the_same(
    script: Script,
) -> None:
    running = started(script.flow())
    running.close()
    async with asyncio.timeout(5):
        with pytest.raises(Cancelled):
            await running.batch()


async def test_what_was_charged_is_told_with_what_cut_the_flow_off() -> None:
    facts: dict[str, str] = {}

    async def flow() -> Flow:
        yield STARTED
        try:
            await asyncio.Event().wait()
        finally:
            facts["cost_nano_usd"] = "7"

    registry = Registry()
    running = registry.start(flow(), Deadline.after(10, SystemClock()), facts)
    await running.batch()
    await registry.drain(0)
    with pytest.raises(Unavailable) as caught:
        await running.batch()
    assert ("ROUTER_DRAINING", "7") == (
        caught.value.reason,
        caught.value.metadata.get("cost_nano_usd"),
    )


async def test_close_leaves_a_flow_alone_whose_receipt_is_there(script: Script) -> None:
    gate = asyncio.get_running_loop().create_future()
    running = started(script.flow(lambda: gate))
    script.put(STARTED, DONE, None)
    await until(lambda: script.given == 2)
    assert [STARTED, DONE] == await running.batch()
    running.close()
    gate.set_result(None)
    await running.task
    assert "whole" == script.ended


async def test_deadline_ends_a_flow_that_does_not_keep_it(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEADLINE_GRACE_SECONDS", 0.01)
    running = started(script.flow(), seconds=0.01)
    with pytest.raises(DeadlineExceeded):
        await running.batch()
    assert isinstance(script.ended, asyncio.CancelledError)


async def test_time_out_within_the_flow_is_not_told_as_the_deadline(script: Script) -> None:
    running = started(script.flow())
    script.put(TimeoutError("a bug"))
    with pytest.raises(TimeoutError, match="a bug"):
        await running.batch()


async def test_registry_bounds_what_is_under_way(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RUNNING_MAX", 1)
    registry = Registry()
    deadline = Deadline.after(10, SystemClock())
    running = registry.start(script.flow(), deadline)
    with pytest.raises(CapacityExhausted) as caught:
        registry.start(Script().flow(), deadline)
    assert "ROUTER_FULL" == caught.value.reason
    running.close()
    await registry.drain(5)
    assert 0 == len(registry)
