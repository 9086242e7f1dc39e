"""The paid side against a server that nobody here wrote: llama.cpp's own, in its own process."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from penstock.core.catalogue import Catalogue
from penstock.core.clock import SystemClock
from penstock.core.config import parse
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Billing, Call, Chunk
from penstock.router.backends.providers import Providers, StandIn
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_LENGTH,
    ChatInput,
    ResponseFormat,
)
from support.chat import chat

KEY = "stand-in-key"
START_SECONDS = 60
"""A cold file system and two busy cores: far more than the second that it takes otherwise."""

CATALOGUE: Catalogue = parse("""
version: 1
providers:
  openai:
    models:
      gpt-4o-mini:
        context_tokens: 128000
        max_output_tokens: 16384
        price: {input_usd_per_mtok: '0.15', output_usd_per_mtok: '0.60'}
""")


@contextmanager
def stand_in(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "STAND_IN_KEY": KEY}
    command = [sys.executable, "-m", "penstock.local.stand_in", "--api-key-env", "STAND_IN_KEY"]
    process = subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    # A server that never gets ready is ended, so that the read below ends too.
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    word, _, url = process.stdout.readline().strip().partition(" ")
    assert word == "READY"
    return url


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with stand_in("--context-tokens", "512", "--slots", "3") as process:
        url = ready_url(process)
        yield url


@pytest.fixture
async def providers(base_url: str) -> AsyncIterator[Providers]:
    stand_in = StandIn("openai", base_url, KEY)
    providers = Providers(CATALOGUE, environ={}, clock=SystemClock(), stand_in=stand_in)
    yield providers
    await providers.close()


def call(asked: ChatInput) -> Call:
    return Call("req_1", "gpt-4o-mini", asked, Deadline.after(60))


async def collect(providers: Providers, asked: ChatInput) -> list[Chunk]:
    return [chunk async for chunk in providers.backend("openai").generate(call(asked))]


async def test_it_streams_and_counts(providers: Providers) -> None:
    chunks = await collect(providers, chat("Tell me of the sea.", max_tokens=6, temperature=0.0))
    deltas = [d for c in chunks for d in c.deltas]
    assert sum(bool(d.content) for d in deltas) > 1
    assert deltas[-1].finish_reason == FINISH_REASON_LENGTH
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 6
    assert usage.prompt_tokens > 5


async def test_the_tokens_of_all_choices_are_counted(providers: Providers) -> None:
    chunks = await collect(providers, chat("Tell me of the sea.", max_tokens=5, n=3))
    usage = chunks[-1].usage
    assert usage is not None
    assert {d.index for c in chunks for d in c.deltas} == {0, 1, 2}
    assert usage.completion_tokens == 15
    assert usage.prompt_tokens < 100


async def test_a_raw_prompt_is_continued_with_all_choices_counted(providers: Providers) -> None:
    asked = ChatInput(prompt="Once upon a time", max_tokens=4, n=2, logprobs=True, top_logprobs=2)
    chunks = await collect(providers, asked)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 8
    tokens = [t for c in chunks for d in c.deltas for t in d.logprobs]
    assert len(tokens) == 8
    assert all(len(t.top_logprobs) == 2 and t.token_bytes for t in tokens)


async def test_a_schema_binds_the_answer_and_logprobs_carry_bytes(providers: Providers) -> None:
    schema = '{"type":"object","properties":{"a":{"enum":["x"]}},"required":["a"]}'
    wanted = ResponseFormat(kind=ResponseFormat.KIND_JSON_SCHEMA, schema_json=schema)
    asked = chat("Answer.", max_tokens=40, response_format=wanted, logprobs=True, top_logprobs=1)
    deltas = [d for c in await collect(providers, asked) for d in c.deltas]
    text = "".join(d.content for d in deltas)
    assert "".join(text.split()) == '{"a":"x"}'
    told = b"".join(t.token_bytes for d in deltas for t in d.logprobs)
    # Its logprobs also name a token that the schema kept out of the text.
    assert text.encode() in told


async def test_a_hang_up_stops_the_model(providers: Providers) -> None:
    began = time.monotonic()
    # All three slots: whoever comes next waits for one that was hung up.
    asked = chat("Count from one to a thousand.", max_tokens=400, n=3)
    async with aclosing(providers.backend("openai").generate(call(asked))) as chunks:
        await anext(chunks)
    hung_up = time.monotonic()
    await collect(providers, chat("Say one word.", max_tokens=1, n=3))
    waited = time.monotonic() - hung_up
    # 1,200 tokens take many times as long as the first of them did.
    assert waited < max(2.0, 3 * (hung_up - began))


async def test_an_over_long_prompt_is_refused_as_such(providers: Providers) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await collect(providers, chat("hello " * 600, max_tokens=4))
    failed = caught.value
    assert failed.error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


async def test_a_wrong_key_is_the_operators_affair(base_url: str) -> None:
    environ = {"OPENAI_API_KEY": "another", "OPENAI_BASE_URL": base_url}
    providers = Providers(CATALOGUE, environ=environ, clock=SystemClock())
    with pytest.raises(AttemptFailed) as caught:
        await collect(providers, chat(max_tokens=4))
    assert caught.value.error.reason == "PROVIDER_CREDENTIALS_INVALID"
    assert caught.value.billing is Billing.NOTHING
    await providers.close()


async def test_more_choices_than_slots_are_refused_as_the_requests_fault(
    providers: Providers,
) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await collect(providers, chat(max_tokens=4, n=4))
    assert not caught.value.fall_back


async def test_parallel_streams_are_all_served(providers: Providers) -> None:
    answers = await asyncio.gather(
        *(collect(providers, chat(f"Say {i}.", max_tokens=3)) for i in range(6))
    )
    assert all(a[-1].usage and a[-1].usage.completion_tokens <= 3 for a in answers)


def test_a_port_in_use_is_told_and_sigterm_ends_it() -> None:
    with stand_in("--context-tokens", "64", "--slots", "1") as process:
        port = ready_url(process).rpartition(":")[2].partition("/")[0]
        second = subprocess.run(
            [sys.executable, "-m", "penstock.local.stand_in", "--listen", f"127.0.0.1:{port}"],
            env={**os.environ, "OPENAI_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--listen", "nowhere"], "--listen"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["--slots", "0"], "--slots"),
        (["--source", "nothing.gguf"], "nothing.gguf"),
    ],
)
def test_faults_of_the_command_line_are_told(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.local.stand_in", *arguments],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert KEY not in done.stderr
