"""How every engine begins, is cancelled, is asked for its health, and ends."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from contract.engine.asking import HELD_BACK, LONG_STORY, ask, collect
from contract.engine.rigs import SLOTS, Rig
from penstock.core.errors import Unavailable
from penstock.local.engines import create
from penstock.local.engines.base import ENGINE_DEAD, Engine, EngineSettings, ModelUnusable

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANCEL_SECONDS = 0.1
"""What is promised while the model decodes."""

PREFILL_CANCEL_SECONDS = 2.0
"""One batch of the prompt, with room for a machine that does other things too; what it really is,
`python -m tests.load.cancel_bound` prints. A whole prefill of such a prompt takes longer."""


async def hang_up(engine: Engine, text: str, *, after_tokens: int, **fields: Any) -> float:
    """Seconds from the hang-up until the engine is free."""
    deltas = engine.generate(ask(text, max_tokens=1000, **fields), request_id="a")
    async for delta in deltas:
        assert delta.usage is None
        if delta.completion_tokens >= after_tokens:
            break
    began = time.perf_counter()
    await deltas.aclose()
    assert engine.stats().running == 0
    return time.perf_counter() - began


@pytest.mark.parametrize("n", [1, 3])
async def test_a_hang_up_while_decoding_frees_the_model_within_the_promise(
    engine: Engine, n: int
) -> None:
    taken = [await hang_up(engine, LONG_STORY, after_tokens=3, n=n) for _ in range(5)]
    # The best of five: a busy test machine misses often, an engine that goes on misses always.
    assert min(taken) <= CANCEL_SECONDS


@pytest.mark.parametrize("held_back", HELD_BACK.values(), ids=HELD_BACK)
async def test_a_hang_up_is_noticed_and_counted_while_text_is_held_back(
    engine: Engine, held_back: dict[str, Any]
) -> None:
    taken = [await hang_up(engine, LONG_STORY, after_tokens=9, **held_back) for _ in range(5)]
    assert min(taken) <= CANCEL_SECONDS


@pytest.mark.parametrize("held_back", HELD_BACK.values(), ids=HELD_BACK)
async def test_text_that_is_held_back_holds_up_nobody_else(
    engine: Engine, held_back: dict[str, Any]
) -> None:
    silent = engine.generate(ask(LONG_STORY, max_tokens=1000, **held_back), request_id="a")
    async for delta in silent:
        if delta.prompt_tokens:
            break
    rest = asyncio.create_task(collect(silent))
    other = await collect(engine.generate(ask(LONG_STORY, max_tokens=1), request_id="b"))
    assert other.usage.completion_tokens == 1
    assert not rest.done()
    rest.cancel()
    await asyncio.wait({rest})
    assert engine.stats().running == 0


async def test_a_hang_up_in_prefill_ends_with_the_batch(engine: Engine) -> None:
    taken = await hang_up(engine, "the sea and " * 500, after_tokens=0)
    assert taken <= PREFILL_CANCEL_SECONDS


async def test_who_waits_behind_a_long_prompt_hangs_up_at_once(engine: Engine) -> None:
    reading = engine.generate(ask("the waves and " * 500), request_id="a")
    await anext(reading)
    waiting = asyncio.create_task(
        collect(engine.generate(ask("the wind and " * 500), request_id="b"))
    )
    await asyncio.sleep(0)
    began = time.perf_counter()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.perf_counter() - began <= PREFILL_CANCEL_SECONDS
    await reading.aclose()
    assert engine.stats().running == 0


async def test_a_cancelled_reader_stops_the_model_too(engine: Engine) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async for delta in engine.generate(ask(LONG_STORY, max_tokens=1000), request_id="a"):
            if delta.choices:
                began.set()

    reader = asyncio.create_task(read())
    await began.wait()
    assert engine.stats().running == 1
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert engine.stats().running == 0


async def test_all_slots_generate_at_once(engine: Engine) -> None:
    asked = [
        collect(engine.generate(ask(f"{LONG_STORY} {i}", max_tokens=12), request_id=str(i)))
        for i in range(SLOTS)
    ]
    answers = await asyncio.gather(*asked)
    assert [a.usage.completion_tokens for a in answers] == [12] * SLOTS
    assert engine.stats().tokens_per_second > 0


async def test_a_living_engine_is_healthy_also_while_it_works(engine: Engine) -> None:
    await engine.check_health()
    deltas = engine.generate(ask(LONG_STORY, max_tokens=200), request_id="a")
    await anext(deltas)
    await engine.check_health()
    await deltas.aclose()


async def test_a_dead_engine_says_so_at_each_door(rig: Rig) -> None:
    doomed = rig.create()
    await doomed.start()
    await doomed.check_health()
    await rig.die(doomed)

    async def dead() -> str:
        # A crash is noticed within moments, not at once.
        async with asyncio.timeout(20):
            while True:
                try:
                    await doomed.check_health()
                except Unavailable as error:
                    return error.reason
                await asyncio.sleep(0.05)

    assert await dead() == ENGINE_DEAD
    with pytest.raises(Unavailable) as caught:
        await collect(doomed.generate(ask("Hi"), request_id="a"))
    assert caught.value.reason == ENGINE_DEAD
    await doomed.close()


async def test_weights_that_are_none_are_told_by_file(rig: Rig, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"these are no weights")
    settings = EngineSettings(
        "broken", broken, context_tokens=512, slots=1, threads=1, format=rig.format
    )
    engine = create(rig.name, settings)
    with pytest.raises(ModelUnusable, match=r"broken\.gguf"):
        await engine.start()
    await engine.close()
