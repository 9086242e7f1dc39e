"""vLLM in this process: its asynchronous engine, whose model runs in child processes.

It batches continuously by itself. Closing a generation aborts it: the model drops it at its next
step: a token of every running request while it decodes, and a batch of the prompt in prefill.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from penstock.core.errors import CapacityExhausted, PenstockError, UpstreamFailed
from penstock.local import quantize
from penstock.local.average import Average
from penstock.local.engines import vllm_cpu, vllm_guard
from penstock.local.engines.base import (
    Delta,
    EngineSettings,
    EngineStats,
    ModelUnusable,
    choice_count,
    context_exceeded,
    engine_dead,
    input_field,
)
from penstock.local.engines.chat import refused, refused_by
from penstock.local.engines.vllm_output import Tally
from penstock.local.engines.vllm_prompt import PromptMaker
from penstock.local.engines.vllm_sampling import sampling_params
from penstock.local.engines.vllm_tokens import TokenBytes
from penstock.type.v1 import chat_pb2

GRAMMAR = {
    # llguidance: of vLLM's choices the one that takes most of JSON Schema.
    "backend": "guidance",
    # White space between JSON's parts is tokens that nobody reads.
    "disable_any_whitespace": True,
}

ENVIRONMENT = {
    # The weights lie on disk: nothing is to be asked of a hub, nor told to anyone.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Of the process and its children, where the operator has not said otherwise."""


class VllmEngine:
    """See `base.Engine`. `path` is a Hugging Face folder, or a GGUF file that is converted once."""

    name = "vllm"

    def __init__(
        self,
        settings: EngineSettings,
        *,
        cache: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._cache = cache or quantize.cache_folder(os.environ)
        self._clock = clock
        self._engine: Any = None
        self._prompts: PromptMaker | None = None
        self._token_bytes: TokenBytes | None = None
        # One thread: a tokenizer is not safe for more, and long prompts must not hold the loop.
        self._tokenizing = ThreadPoolExecutor(1, "vllm-tokenize")
        self._running = 0
        self._tokens_per_second = Average()

    async def start(self) -> None:
        folder = await self._weights()
        # Importing and loading block for half a minute, and the loop answers health checks.
        self._engine = await asyncio.to_thread(self._load, folder)
        tokenizer = self._engine.get_tokenizer()
        if asyncio.iscoroutine(tokenizer):
            tokenizer = await tokenizer
        self._prompts = PromptMaker(tokenizer)
        self._token_bytes = TokenBytes(tokenizer)

    async def _weights(self) -> Path:
        """The folder that vLLM loads."""
        path = self._settings.path
        if path.is_dir():
            return path
        if not path.is_file():
            raise ModelUnusable(f"{path}: is neither a folder of weights nor a GGUF file")
        # In a process of its own: converting takes several times the model's memory.
        command = ("-m", "penstock.local.quantize", str(path))
        options = ("--format", self._settings.format, "--cache", str(self._cache))
        child = await asyncio.create_subprocess_exec(
            sys.executable, *command, *options, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await child.communicate()
        except BaseException:
            child.kill()
            await child.wait()
            raise
        if child.returncode != 0:
            raise ModelUnusable(
                f"{path}: cannot be converted to {self._settings.format} for vLLM; "
                "the reason stands above in the log"
            )
        return Path(out.decode().strip())

    def _load(self, folder: Path) -> Any:
        settings = self._settings
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ[vllm_guard.PARENT_VARIABLE] = str(os.getpid())
        arguments: dict[str, Any] = {
            "model": str(folder),
            "served_model_name": settings.model,
            "max_model_len": settings.context_tokens,
            "max_num_seqs": settings.slots,
            "structured_outputs_config": GRAMMAR,
            "disable_log_stats": True,
            "worker_extension_cls": f"{vllm_guard.__name__}.{vllm_guard.Guard.__name__}",
        }
        if settings.gpus:
            arguments["tensor_parallel_size"] = max(1, int(settings.gpus))
        else:
            os.environ.update(vllm_cpu.environment(settings, folder, os.environ))
            arguments |= vllm_cpu.arguments(settings)
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:
            raise ModelUnusable(f"vLLM cannot load {folder}: {error}") from error

    async def generate(
        self, chat: chat_pb2.ChatInput, *, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        engine = self._alive()
        self._running += 1
        try:
            tally, outputs = await self._begin(engine, chat, request_id)
            began: float | None = None
            try:
                async for output in outputs:
                    yield tally.add(output)
                    began = began or self._clock()
                self._learn(tally.completion_tokens / choice_count(chat), began)
            finally:
                await outputs.aclose()
            yield tally.last()
        except PenstockError:
            raise
        except Exception as error:
            raise self._translated(error, chat) from error
        finally:
            self._running -= 1

    async def _begin(
        self, engine: Any, chat: chat_pb2.ChatInput, request_id: str
    ) -> tuple[Tally, AsyncGenerator[Any, None]]:
        assert self._prompts is not None
        assert self._token_bytes is not None
        settings = self._settings
        if choice_count(chat) > settings.slots:
            raise refused("input.n", f"the model has {settings.slots} slots: ask for fewer choices")
        params = sampling_params(chat)
        token_ids = await asyncio.get_running_loop().run_in_executor(
            self._tokenizing, self._prompts.token_ids, chat
        )
        if not token_ids:
            raise refused(input_field(chat), "is empty: there is nothing to continue")
        # One token at least must fit behind the prompt.
        if len(token_ids) >= settings.context_tokens:
            raise context_exceeded(
                prompt_tokens=len(token_ids),
                context_tokens=settings.context_tokens,
                field=input_field(chat),
            )
        tally = Tally(
            chat,
            prompt_tokens=len(token_ids),
            token_bytes=self._token_bytes,
            request_id=request_id,
        )
        # As vLLM's own renderer hands a prompt over.
        prompt = {"type": "token", "prompt_token_ids": token_ids}
        return tally, engine.generate(prompt, params, request_id)

    def _alive(self) -> Any:
        if self._engine is None:
            raise engine_dead("it is not loaded")
        return self._engine

    @staticmethod
    def _translated(error: Exception, chat: chat_pb2.ChatInput) -> Exception:
        """VLLM's errors as ours; unknown ones as they are."""
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if isinstance(error, EngineDeadError):
            return engine_dead("its process has ended")
        if isinstance(error, VLLMClientError):
            return refused_by("vLLM", chat, str(error))
        if isinstance(error, GracefulHTTPError):
            return CapacityExhausted(error.message)
        if isinstance(error, EngineGenerateError):
            cause = error.__cause__
            if isinstance(cause, ValueError | TypeError):
                # Some checks of a request raise what Python raises.
                return refused_by("vLLM", chat, str(cause))
            return UpstreamFailed(f"vLLM gave the request up: {cause or error}")
        return error

    def _learn(self, tokens: float, began: float | None) -> None:
        """Updates the speed of one stream, from its first piece to its end."""
        seconds = self._clock() - began if began is not None else 0.0
        if seconds <= 0 or tokens <= 1:
            return
        self._tokens_per_second.add((tokens - 1) / seconds)

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, tokens_per_second=self._tokens_per_second.value)

    async def check_health(self) -> None:
        engine = self._alive()
        try:
            await engine.check_health()
        except Exception as error:
            raise engine_dead(str(error)) from error

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
        self._tokenizing.shutdown(wait=False)
