"""Turns a GGUF file into a quantized checkpoint that vLLM loads, on a CPU as on a GPU.

vLLM reads no GGUF on a CPU. So the file is dequantised once by transformers and its linear layers
are rounded to the nearest (no calibration data) into one of `FORMATS`, laid out as
compressed-tensors has it; embeddings, norms and the head stay bf16. torch, transformers and
safetensors are imported only when something must be made.

Results are kept by content: same file, same format, same converter → same folder. A folder appears
by one rename when it is whole, so a crash or a full disk never leaves half a model behind.
"""

import argparse
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.local.engines.base import ModelUnusable

logger = logging.getLogger(__name__)

Report = Callable[[str], None]
"""Told what is being done now, one line at a time."""

CONVERTER_VERSION = 1
"""Part of the cache's key: raised whenever the same input would give other bytes."""

GROUP_SIZE = 64
"""Weights that share a scale at 4 bits. The usual 128 does not divide SmolLM2's 576 columns."""

SHRINK_STEPS = tuple(1.0 - step / 40 for step in range(13))
"""Clipping tried for each 4-bit group, in parts of its largest weight; the least error wins."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a linear layer's weights are held, and what its `quantization_config` says of it."""

    name: str
    bits: int
    group_size: int | None
    """None: one scale a row (output channel)."""
    activations_int8: bool
    """Activations are rounded to int8 a token at run time; otherwise they stay bf16."""


FORMATS = {
    "w4a16": Format("w4a16", bits=4, group_size=GROUP_SIZE, activations_int8=False),
    "w8a8": Format("w8a8", bits=8, group_size=None, activations_int8=True),
}


CACHE_VARIABLE = "PENSTOCK_MODEL_CACHE"


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where results are kept: PENSTOCK_MODEL_CACHE, else a folder of the user's cache."""
    if env.get(CACHE_VARIABLE):
        return Path(env[CACHE_VARIABLE])
    user_cache = env.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "penstock" / "models"


def ensure(source: Path, format_name: str, cache: Path, report: Report = logger.info) -> Path:
    """The folder in `cache` with `source` (a GGUF file) in the format; made if it is not there.

    Blocks: seconds when found (the file is hashed), under a minute for a model of 135 M parameters
    when not. Two processes that ask at once make it once.

    Raises:
        ModelUnusable: the file is missing or unreadable, the format is unknown or does not fit the
            model's shapes, or the result cannot be written.
    """
    if format_name not in FORMATS:
        raise ModelUnusable(
            f"{source}: cannot be made {format_name!r}; there are {', '.join(sorted(FORMATS))}"
        )
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        cache.mkdir(parents=True, exist_ok=True)
        name = f"{source.stem}-{format_name}-{digest[:16]}-v{CONVERTER_VERSION}"
        target = cache / name
        if target.is_dir():
            return target
        with _locked(cache / f".{name}.lock"):
            if not target.is_dir():
                _make(source, FORMATS[format_name], target, report)
    except OSError as error:
        raise ModelUnusable(f"{source}: cannot be turned into {format_name}: {error}") from error
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(source: Path, form: Format, target: Path, report: Report) -> None:
    prefix = f".{target.name}.making-"
    for half_made in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(half_made)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _convert(source, form, folder, report)
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    report(f"{target.name}: ready")


def _convert(source: Path, form: Format, folder: Path, report: Report) -> None:
    """Fills `folder` with weights, config, tokenizer and chat template."""
    from safetensors.torch import save_file

    report(f"{source.name}: reading and dequantising")
    model, tokenizer = _load(source)
    tensors = _quantized_state(model, form, lambda done: report(f"{source.name}: {done}"))
    report(f"{source.name}: writing {form.name}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["quantization_config"] = quantization_config(form)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load(source: Path) -> tuple[Any, Any]:
    """(model in bf16, tokenizer) of the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    except Exception as error:
        # A foreign file fails in many ways inside the readers; all mean that the file is no use.
        raise ModelUnusable(f"{source}: cannot be read as GGUF: {error}") from error
    if not tokenizer.chat_template:
        raise ModelUnusable(f"{source}: has no chat template")
    return model.eval(), tokenizer


def _quantized_state(model: Any, form: Format, report: Report) -> dict[str, Any]:
    """Tensor by name, linear layers but the head in the format."""
    import torch

    linear = {
        f"{name}.weight": name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    tied = model.config.tie_word_embeddings
    found: dict[str, Any] = {}
    done = 0
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        if key not in linear:
            found[key] = tensor.contiguous()
            continue
        parts = quantized(tensor, form, key)
        found.update({f"{linear[key]}.{part}": value for part, value in parts.items()})
        done += 1
        if done % 30 == 0 or done == len(linear):
            report(f"{done} of {len(linear)} layers to {form.name}")
    return found


def quantized(weight: Any, form: Format, name: str) -> dict[str, Any]:
    """The tensors that hold `weight` [out, in] in the format, by their compressed-tensors names."""
    import torch

    rows, columns = weight.shape
    group = form.group_size or columns
    if columns % group:
        raise ModelUnusable(f"{name}: {columns} columns cannot be cut into groups of {group}")
    grouped = weight.float().reshape(rows, columns // group, group)
    scale, values = _rounded(grouped, form)
    scale = scale.squeeze(-1).to(torch.bfloat16)
    values = values.reshape(rows, columns)
    if form.bits == 8:
        return {"weight": values.to(torch.int8), "weight_scale": scale}
    return {
        "weight_packed": packed_int4(values),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }


def _rounded(grouped: Any, form: Format) -> tuple[Any, Any]:
    """(scale [.., 1], int values) of each group along the last axis, symmetric around 0."""
    import torch

    low, high = -(1 << (form.bits - 1)), (1 << (form.bits - 1)) - 1
    largest = grouped.abs().amax(-1, keepdim=True)
    best_error = torch.full_like(largest, torch.inf)
    best_scale, best_values = torch.ones_like(largest), torch.zeros_like(grouped)
    for part in SHRINK_STEPS if form.bits == 4 else (1.0,):
        # The scale is rounded as it will be stored, so that the values fit the stored one. A group
        # of zeros has the scale 1.
        scale = (largest * part / (high + 0.5)).to(torch.bfloat16).float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        values = torch.round(grouped / scale).clamp(low, high)
        error = (values * scale - grouped).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_values = torch.where(better, values, best_values)
    return best_scale, best_values


def packed_int4(values: Any) -> Any:
    """[rows, columns] of -8…7 to int32 [rows, columns / 8]: offset by 8, lowest column lowest."""
    import torch

    rows, columns = values.shape
    nibbles = (values.to(torch.int64) + 8).reshape(rows, columns // 8, 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int64)
    words = (nibbles << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def quantization_config(form: Format) -> dict[str, Any]:
    """What `config.json` says, as compressed-tensors reads it."""
    weights = {
        "num_bits": form.bits,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group" if form.group_size else "channel",
        "group_size": form.group_size,
    }
    activations = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "dynamic": True,
        "strategy": "token",
    }
    layout = "int-quantized" if form.activations_int8 else "pack-quantized"
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if form.activations_int8 else None,
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def main() -> None:
    """Makes a checkpoint ahead of time: `python -m penstock.local.quantize FILE`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path, help="a GGUF file")
    parser.add_argument("--format", choices=sorted(FORMATS), default="w8a8")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(os.environ), help="folder that keeps the results"
    )
    arguments = parser.parse_args()

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    try:
        made = ensure(arguments.source, arguments.format, arguments.cache, say)
    except ModelUnusable as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write(f"{made}\n")


if __name__ == "__main__":
    main()
