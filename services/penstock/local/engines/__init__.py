"""The engines, by name. Each is imported only when asked for: none is needed by the others."""

from penstock.local.engines.base import Engine, EngineSettings

ENGINES = ("llamacpp", "vllm")


def create(name: str, settings: EngineSettings) -> Engine:
    """An engine that is not started yet.

    Raises:
        ValueError: no engine of that name.
        ImportError: the engine's package is not installed.
    """
    if name == "llamacpp":
        from penstock.local.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(settings)
    if name == "vllm":
        from penstock.local.engines.vllm import VllmEngine

        return VllmEngine(settings)
    raise ValueError(f"engine {name!r} is not known; there are {', '.join(ENGINES)}")
