"""All proofs of the ledger, and one table (LEDGER, "How it is proven").

PYTHONPATH=tests python -m proofs --histories 10000 --kills 50 --rounds 10 --seed 7
"""

import argparse
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ledger.figures import machine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from proofs import ROOT, between, kills, page, race, simulation

QUOTA = "tests/integration/quota/"
SCENARIOS = tuple(
    f"{QUOTA}test_{name}.py"
    for name in (
        *("operations", "admission", "windows", "grants", "pools", "rates", "extend"),
        *("races", "concurrency", "between_statements", "bugs_of_others", "not_yours"),
    )
)
MACHINE = ("tests/property/test_ledger_machine.py",)
TRACE = (
    "tests/integration/telemetry/test_otlp_export.py::test_thousands_of_requests_sum_to_the_nano",
    # Whole: its last tests compare what all before them have spent.
    "tests/e2e/test_main_job.py",
)
FAILURES_SHOWN = 10
HEADER = ("proof", "what was run", "how many", "seed", "seconds", "verdict")


@dataclass
class Row:
    """A line of the table."""

    proof: str
    ran: str
    count: str
    seed: str
    seconds: float
    failures: list[str]

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = f"{len(self.failures)} FAILED" if self.failures else "holds"
        return (self.proof, self.ran, self.count, self.seed, f"{self.seconds:.0f}", verdict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--per-gap", type=int, default=20, help="cases between two statements")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="of the races")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--without-trace", action="store_true", help="needs the whole stack")
    parser.add_argument("--write", action="store_true", help=f"also writes docs/{page.PAGE.name}")
    arguments = parser.parse_args()
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        proofs: dict[str, Callable[[], Row]] = {
            "1 scenario tables": lambda: _pytest("1 scenario tables", SCENARIOS, progress),
            "2 races": lambda: _race(arguments.rounds, progress),
            "3 state machine": lambda: _pytest("3 state machine, auditor", MACHINE, progress),
            "4 simulation": lambda: _simulation(arguments.histories, arguments.seed, progress),
            "between statements": lambda: _between(arguments.per_gap, arguments.seed, progress),
            "5 kill -9": lambda: _kills(arguments.kills, arguments.seed, progress),
            "6 trace = ledger": lambda: _pytest("6 trace = ledger", TRACE, progress),
        }
        if arguments.without_trace:
            del proofs["6 trace = ledger"]
        for name, prove in proofs.items():
            try:
                rows.append(prove())
            except Exception:  # noqa: BLE001 - the others are still run, and the table says so
                rows.append(Row(name, "", "", "", 0, [traceback.format_exc()]))
            # Each line as it is there: a long proof may be ended before its table.
            progress.console.print(_table(rows[-1:]))
    Console(width=None if sys.stdout.isatty() else 150).print(_table(rows))
    for row in rows:
        for failure in row.failures[:FAILURES_SHOWN]:
            sys.stdout.write(f"{row.proof}: {failure}\n")
    if arguments.write:
        _write(rows, arguments)
    return 1 if any(row.failures for row in rows) else 0


def _table(rows: list[Row]) -> Table:
    table = Table(*HEADER)
    for row in rows:
        *cells, verdict = row.cells
        table.add_row(*cells, f"[{'red' if row.failures else 'green'}]{verdict}[/]")
    return table


def _write(rows: list[Row], arguments: argparse.Namespace) -> None:
    more = " --without-trace" if arguments.without_trace else ""
    command = (
        f"make prove HISTORIES={arguments.histories} KILLS={arguments.kills}"
        f" ROUNDS={arguments.rounds} SEED={arguments.seed} ARGS='--write{more}'"
    )
    failed = sum(bool(row.failures) for row in rows)
    verdict = f"{failed} of {len(rows)} proofs FAILED." if failed else "All proofs hold."
    said = f"Printed by `{command}` on: {machine()}."
    page.write("prove", said, HEADER, [row.cells for row in rows], verdict)


def _pytest(proof: str, files: tuple[str, ...], progress: Progress) -> Row:
    task = progress.add_task(proof, total=None)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    # pytest -q -q prints no summary where all passed: its dots are counted.
    passed = sum(
        len(line.split(" ")[0])
        for line in done.stdout.splitlines()
        if re.fullmatch(r"\.+ *\[ *\d+%\]", line)
    )
    if done.returncode != 0 and not failures:
        failures = [(done.stdout + done.stderr)[-2000:]]
    progress.update(task, total=1, completed=1)
    ran = ", ".join(sorted({Path(file.split("::")[0]).stem for file in files}))
    seconds = time.monotonic() - began
    return Row(proof, ran, f"{passed} tests", "", seconds, failures)


def _race(rounds: int, progress: Progress) -> Row:
    task = progress.add_task("2 races", total=rounds * len(race.RACES))
    began = time.monotonic()
    result = race.run(rounds, lambda: progress.advance(task))
    ran = f"{race.PROCESSES} quota processes; " + "; ".join(r.name for r in race.RACES)
    count = f"{result.races} races, {result.tasks} tasks"
    return Row("2 races", ran, count, "", time.monotonic() - began, result.failures)


def _simulation(histories: int, seed: int, progress: Progress) -> Row:
    task = progress.add_task("4 simulation", total=histories)
    began = time.monotonic()

    def on_chunk(result: simulation.Result) -> None:
        progress.advance(task, result.histories)

    result = simulation.simulate(histories, seed, on_chunk=on_chunk)
    crashes = ("crashes", "messages lost", "messages repeated", "answers lost")
    stores = result.counts["store killed before its commit"]
    stores += result.counts["store killed after its commit"]
    ran = ", ".join(f"{result.counts[name]:,} {name}" for name in crashes)
    batched = f"{result.counts['operations through the Batcher']:,} through the Batcher"
    killed = f"{result.counts['quota processes killed']:,} of its processes"
    failures = [
        f"history {number} (--seed {seed} --only {number}): {why}"
        for number, why in sorted(result.failures.items())
    ]
    return Row(
        "4 simulation",
        f"{ran}, {stores:,} kills of the store and {killed};"
        " balances = auditor = fold of the entries",
        f"{result.histories:,} histories, {result.counts['operations']:,} operations, {batched}",
        str(seed),
        time.monotonic() - began,
        failures,
    )


def _between(per_gap: int, seed: int, progress: Progress) -> Row:
    task = progress.add_task("between statements", total=None)
    began = time.monotonic()
    result = between.run(between.Plan(seed, per_gap), lambda: progress.advance(task))
    failures = [
        f"case {number} (proofs.between --seed {seed} --only {number}): {why}"
        for number, why in sorted(result.failures.items())
    ]
    progress.update(task, total=len(result.reached))
    return Row(
        "4 what commits between two statements",
        f"before {len(+result.reached)} of {len(result.reached)} statements a batch waits while"
        " another session commits; answers, balances and entries are as if wholly before or after"
        + "".join(f"; never reached: {gap.before}" for gap in result.missed),
        f"{result.reached.total():,} batches stood, {result.waited:,} others waited for them",
        str(seed),
        time.monotonic() - began,
        failures,
    )


def _kills(count: int, seed: int, progress: Progress) -> Row:
    task = progress.add_task("5 kill -9", total=count)
    began = time.monotonic()
    result = kills.run(count, seed, lambda _: progress.advance(task))
    each = ", ".join(f"{n} of {what}" for what, n in result.kills.items())
    return Row(
        "5 kill -9, then audit",
        f"{each}; an audit after each of up to {result.entries:,} entries",
        f"{sum(result.kills.values())} kills, {result.acknowledged:,} acknowledged answers",
        str(seed),
        time.monotonic() - began,
        result.failures,
    )


if __name__ == "__main__":
    sys.exit(main())
