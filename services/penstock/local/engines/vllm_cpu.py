"""What vLLM needs to be told on a machine without a GPU. Pure, but for reading `config.json`."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.local.engines.base import EngineSettings

logger = logging.getLogger(__name__)

PREFILL_BATCH_TOKENS = 128
"""Prompt tokens a step: a cancelled prefill holds the model for one step at most."""

BLOCK_TOKENS = 128
"""vLLM's unit of its cache on a CPU: a sequence may leave most of its last one unused."""

VALUE_BYTES = 2
"""The cache holds bf16."""

GIB = 1 << 30


def arguments(settings: EngineSettings) -> dict[str, Any]:
    """Of vllm.AsyncEngineArgs."""
    return {
        # Compiling needs a C++ compiler, and on a CPU a minute at each start.
        "enforce_eager": True,
        "max_num_batched_tokens": max(PREFILL_BATCH_TOKENS, settings.slots),
    }


def environment(settings: EngineSettings, folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before vLLM is imported; what the operator has set stays."""
    # Without it parts of the sampler are compiled at first use: 19 s for the first logprobs.
    found = {"TORCH_COMPILE_DISABLE": "1"}
    found |= _threads(settings.threads, sorted(os.sched_getaffinity(0)))
    cache_gib = cache_gib_of(folder, context_tokens=settings.context_tokens, slots=settings.slots)
    if cache_gib is not None:
        found["VLLM_CPU_KVCACHE_SPACE"] = str(cache_gib)
    # OMP_NUM_THREADS is no operator's wish: Ray sets it, to the CPUs that its scheduler counts.
    return {k: v for k, v in found.items() if k not in env or k == "OMP_NUM_THREADS"}


def _threads(threads: int, cpus: list[int]) -> dict[str, str]:
    """Bound to all CPUs or to none.

    Binding makes the model about a third faster, but two replicas must not share a CPU then.
    """
    if threads >= len(cpus):
        return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus))}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def cache_gib_of(folder: Path, *, context_tokens: int, slots: int) -> int | None:
    """GiB of key-value cache in which every slot has its whole context; None: cannot be told."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        cached_heads = int(config.get("num_key_value_heads") or heads)
        layers = int(config["num_hidden_layers"])
    except (OSError, ValueError, KeyError) as error:
        logger.info("%s: the cache's size is left to vLLM: %s", folder, error)
        return None
    token_bytes = 2 * layers * cached_heads * width * VALUE_BYTES
    return math.ceil(token_bytes * (context_tokens + BLOCK_TOKENS) * slots / GIB)
