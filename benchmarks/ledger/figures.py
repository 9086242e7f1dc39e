"""The table: each figure with its goal, the machine, and the command that prints it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

COMMAND = "make bench-ledger"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line. `ok` None: nothing is promised."""

    name: str
    value: str
    goal: str = ""
    ok: bool | None = None

    @property
    def verdict(self) -> str:
        return {None: "", True: "yes", False: "NO"}[self.ok]


def machine() -> str:
    """CPU model and cores."""
    cores = psutil.cpu_count() or 1
    return f"{_cpu_model()}, {cores} {'core' if cores == 1 else 'cores'}"


def load_average() -> str:
    """Of the last minute: whether anything else ran."""
    return f"{psutil.getloadavg()[0]:.1f}"


def markdown(figures: Sequence[Figure], arguments: str, load_before: str) -> str:
    lines = [
        "# What the ledger does in a second",
        "",
        f"Printed by `{COMMAND}{arguments}` on: {machine()}; load average before: {load_before}.",
        "PostgreSQL with fsync, the quota processes and the load generators share the machine.",
        "All ratios are of one run.",
        "",
        "| measured | figure | goal | reached |",
        "|---|---|---|---|",
        *(f"| {f.name} | {f.value} | {f.goal} | {f.verdict} |" for f in figures),
    ]
    return "\n".join(lines) + "\n"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
