"""llama.cpp's own server, in this process (PyPI `xllamacpp`).

It batches continuously by itself. A call blocks a thread and releases the GIL; its chunks come
by a callback, and the callback's True ends the generation: that is how a hang-up stops the model.
There is no other way, so nothing is asked of llama.cpp that would keep it silent for long.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from penstock.local.average import Average
from penstock.local.engines.base import (
    Delta,
    EngineSettings,
    EngineStats,
    ModelUnusable,
    engine_dead,
)
from penstock.local.engines.chat import Json, refused_by
from penstock.local.engines.llamacpp_output import Tally
from penstock.local.engines.llamacpp_wire import body_of
from penstock.type.v1 import chat_pb2

logger = logging.getLogger(__name__)

PREFILL_BATCH_TOKENS = 32
"""A cancelled prefill ends with its batch. Small, so that this takes tens of milliseconds on one
core; large batches would read a long prompt faster and hold a dead request for seconds."""

PROBE_SECONDS = 30.0
"""The health probe passes through the model's own loop, between two batches: a loop that has not
come round for this long hangs, even on a machine with far too few cores."""

QUIET_VERBOSITY = 0
"""Errors only: llama.cpp logs several lines a request otherwise."""


class LlamaCppEngine:
    """See `base.Engine`. One event loop uses it; its threads only carry chunks there."""

    name = "llamacpp"

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._server: Any = None
        self._running: set[asyncio.Future[None]] = set()
        # One thread a running request (a request takes at least one slot).
        self._pool = ThreadPoolExecutor(settings.slots, "llamacpp")
        self._prober = ThreadPoolExecutor(1, "llamacpp-probe")
        # llama.cpp reads prompts one after the other and tells a waiting one nothing, so that it
        # could not be cancelled: here it can.
        self._prefill = asyncio.Lock()
        self._tokens_per_second = Average()
        self._closing = False

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.run_in_executor(self._prober, self._load)

    def _load(self) -> Any:
        import xllamacpp  # heavy: 100 MB of native code

        settings = self._settings
        if not settings.path.is_file():
            raise ModelUnusable(f"{settings.path} is no file: llama.cpp reads one .gguf file")
        params = xllamacpp.CommonParams()
        params.model.path = str(settings.path)
        params.model_alias = [settings.model]
        params.n_parallel = settings.slots
        # llama.cpp divides its context among the slots.
        params.n_ctx = settings.slots * settings.context_tokens
        params.n_batch = params.n_ubatch = max(PREFILL_BATCH_TOKENS, settings.slots)
        params.cpuparams.n_threads = settings.threads
        params.cpuparams_batch.n_threads = settings.threads
        params.n_gpu_layers = -1 if settings.gpus else 0
        params.fit_params = False
        params.endpoint_metrics = True
        params.verbosity = QUIET_VERBOSITY
        try:
            return xllamacpp.Server(params)
        except Exception as error:
            raise ModelUnusable(f"llama.cpp cannot load {settings.path}: {error}") from error

    async def generate(
        self, chat: chat_pb2.ChatInput, *, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        call = _Call(chat, asyncio.get_running_loop())
        turn = _Turn(self._prefill)
        await turn.begin()
        try:
            async with contextlib.aclosing(self._run(call, chat, turn, request_id)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            turn.end()

    async def _run(
        self, call: "_Call", chat: chat_pb2.ChatInput, turn: "_Turn", request_id: str
    ) -> AsyncGenerator[Delta, None]:
        self._demand_alive()
        tally = Tally(chat)
        work = asyncio.get_running_loop().run_in_executor(
            self._pool, call.run, self._server, request_id
        )
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        work.add_done_callback(call.finish)
        try:
            while not tally.complete and (chunk := await call.chunks.get()) is not None:
                delta = tally.add(chunk)
                if tally.is_prompt_read:
                    turn.end()
                if delta is not None:
                    yield delta
            # After a stop sequence llama.cpp would go on.
            call.gone = True
            await asyncio.shield(work)
            if self._closing or not tally.complete:
                raise engine_dead("it ended a generation before its end")
            if tally.tokens_per_second > 0:
                self._tokens_per_second.add(tally.tokens_per_second)
            yield tally.last()
        finally:
            call.gone = True
            if not work.done():
                with contextlib.suppress(Exception):
                    await asyncio.shield(work)

    def _demand_alive(self) -> None:
        if self._server is None or self._closing:
            raise engine_dead("it is not loaded")

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running), tokens_per_second=self._tokens_per_second.value
        )

    async def check_health(self) -> None:
        self._demand_alive()
        loop = asyncio.get_running_loop()
        probe = loop.run_in_executor(self._prober, self._server.handle_metrics)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await asyncio.shield(probe)
        except TimeoutError:
            raise engine_dead(f"its loop has not come round for {PROBE_SECONDS:.0f} s") from None

    async def close(self) -> None:
        self._closing = True
        while self._running:
            await asyncio.wait(self._running)
        server, self._server = self._server, None
        del server
        self._pool.shutdown(wait=False)
        self._prober.shutdown(wait=False)


class _Turn:
    """A request's turn to have its prompt read; ended once, when it is, or by the end."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._is_mine = False

    async def begin(self) -> None:
        await self._lock.acquire()
        self._is_mine = True

    def end(self) -> None:
        if self._is_mine:
            self._is_mine = False
            self._lock.release()


class _Call:
    """One blocking call in a thread, and the way of its chunks to the event loop."""

    def __init__(self, chat: chat_pb2.ChatInput, loop: asyncio.AbstractEventLoop) -> None:
        self._chat = chat
        self._body = body_of(chat)
        self._loop = loop
        self.chunks: asyncio.Queue[Json | None] = asyncio.Queue()
        self.gone = False

    def run(self, server: Any, request_id: str) -> None:
        if self.gone:
            return
        handle: Callable[[Json, Callable[[Json], bool]], object] = (
            server.handle_completions
            if self._chat.HasField("prompt")
            else server.handle_chat_completions
        )
        try:
            handle(self._body, self._on_chunk)
        except (ValueError, RuntimeError) as error:
            # Raised before the first chunk, by its parser or the chat template.
            logger.info("request %s is refused by llama.cpp: %s", request_id, error)
            raise refused_by("llama.cpp", self._chat, str(error)) from error

    def _on_chunk(self, chunk: Json) -> bool:
        if not self.gone:
            self._loop.call_soon_threadsafe(self.chunks.put_nowait, chunk)
        return self.gone

    def finish(self, _work: asyncio.Future[None]) -> None:
        self.chunks.put_nowait(None)
