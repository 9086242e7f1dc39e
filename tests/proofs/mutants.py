"""Does a proof notice when a rule is broken? Each rule is broken in a copy of the services.

    PYTHONPATH=tests python -m proofs.mutants            # the table
    PYTHONPATH=tests python -m proofs.mutants --only lock --all

The tree itself is never touched. A row "nothing is broken" stands first: no proof may fail there.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ledger.figures import machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from proofs import ROOT, page
from proofs.mutant import Mutant
from proofs.mutant_list import APPLY, MUTANTS

QUOTA = "tests/integration/quota/"
SEED = "20261124"
"""Of the simulation: the same for each mutant, so that the table can be printed again."""
_PYTEST = ("-m", "pytest", "-x", "-o", "pythonpath={services} tests")
PROOFS: dict[str, tuple[str, ...]] = {
    "scenarios": (
        *_PYTEST,
        *(f"{QUOTA}test_{name}.py" for name in ("bugs_of_others", "pools", "rates", "extend")),
        *(f"{QUOTA}test_{name}.py" for name in ("grants", "windows", "admission", "not_yours")),
        *(f"{QUOTA}test_{name}.py" for name in ("operations", "between_statements")),
    ),
    "audit": (
        *_PYTEST,
        *(f"{QUOTA}test_{name}.py" for name in ("audit_digests", "audit_settings")),
    ),
    "concurrency": (*_PYTEST, f"{QUOTA}test_races.py"),
    "units": (
        *_PYTEST,
        *("tests/unit/router/test_ledger.py", "tests/unit/router/test_estimate.py"),
        "tests/unit/quota/test_batcher.py",
    ),
    "between": ("-m", "proofs.between", "--per-gap", "2", "--first", "--seed", SEED),
    "simulation": ("-m", "proofs.simulation", "--histories", "400", "--seed", SEED),
}
FIRST_FILES = {
    "I1": "admission",
    "I2": "pools",
    "I3": "operations",
    "I4": "operations",
    "I5": "grants",
    "I6": "grants",
    "I8": "admission",
    "I9": "extend",
    "I10": "windows",
    "I11": "grants",
    "I12": "bugs_of_others",
    "I14": "bugs_of_others",
    "rate limits": "rates",
}
"""Of the scenarios, by invariant: the one that is likely to notice comes first."""
_FAULTY = re.compile(r"PostgresSyntaxError|MigrationError|Undefined\w+Error|SyntaxError:")
"""A mutant that cannot even run proves nothing."""
NARROW = ("units", "audit")
"""Only for the mutants that name them: they know nothing of the others' rules."""
ENDING_SECONDS = 20
SECONDS_MAX = 300
"""Of one proof: a mutant that hangs is killed, too, and the table says so."""
CONTROL = Mutant("nothing is broken", "", APPLY, "", "")
SURVIVED = "survived"
HEADER = ("rule broken", "LEDGER", "killed by", "in", "seconds")


class PatchError(Exception):
    """A mutant does not apply to the code as it is now."""


@dataclass(frozen=True)
class Verdict:
    """`killers`: by proof what failed in it; those that ran and noticed nothing have "survived".
    `faulty`: the mutant does not apply, or does not run.
    """

    mutant: Mutant
    killers: dict[str, str]
    seconds: float
    faulty: bool = False

    @property
    def killed(self) -> bool:
        return not self.faulty and any(k != SURVIVED for k in self.killers.values())

    @property
    def right(self) -> bool:
        return not self.faulty and self.killed != (self.mutant is CONTROL)

    @property
    def cells(self) -> tuple[str, ...]:
        proofs = [p for p, killer in self.killers.items() if killer != SURVIVED]
        return (
            self.mutant.name,
            self.mutant.invariant,
            "\n".join(self.killers[p] for p in proofs) or SURVIVED,
            ", ".join(proofs or self.killers),
            f"{self.seconds:.0f}",
        )


def mutate(mutant: Mutant, folder: Path) -> Path:
    """A copy of services/ in the folder with the rule broken. Raises PatchError."""
    services = folder / "services"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "services", services, ignore=ignored)
    if mutant is not CONTROL:
        path = services / "penstock" / mutant.file
        text = path.read_text()
        count = text.count(mutant.old)
        if count != 1:
            raise PatchError(f"{mutant.name}: its text occurs {count} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))
    return services


def judge(mutant: Mutant, *, every: bool) -> Verdict:
    """Runs the proofs, until one fails or (`every`) all."""
    began = time.monotonic()
    killers: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-mutant-") as folder:
        order = [mutant.proof, *(p for p in PROOFS if p != mutant.proof and p not in NARROW)]
        if mutant is CONTROL:
            order = list(PROOFS)
        first = mutant.first or FIRST_FILES.get(mutant.invariant, "")
        try:
            services = mutate(mutant, Path(folder))
            for proof in order:
                killers[proof] = _run(proof, services, first)
                if killers[proof] != SURVIVED and not every:
                    break
        except PatchError as error:
            told = {"FAULTY": str(error)}
            return Verdict(mutant, told, time.monotonic() - began, faulty=True)
    return Verdict(mutant, killers, time.monotonic() - began)


def _run(proof: str, services: Path, first: str) -> str:
    arguments = [argument.format(services=services) for argument in PROOFS[proof]]
    if first and (named := f"{QUOTA}test_{first}.py") in arguments:
        arguments.remove(named)
        arguments.insert(next(n for n, a in enumerate(arguments) if QUOTA in a), named)
    environment = os.environ | {"PYTHONPATH": f"{services}:{ROOT / 'tests'}"}
    log = services.parent / f"{proof}.log"
    with log.open("wb") as output:
        # A session of its own: what it has started ends with it.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # First so that it stops its servers, which are in sessions of their own.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"still running after {SECONDS_MAX} s"
    if code == 0:
        return SURVIVED
    text = log.read_text(errors="replace")
    if _FAULTY.search(text):
        raise PatchError(f"a mutant does not run at all ({proof}):\n{text[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(\S+)", text, re.MULTILINE)
    if failed is not None:
        return failed[1]
    history = re.search(r"^(?:history|case) -?\d+ \(.*?\)", text, re.MULTILINE)
    if code == 1 and history is not None:
        return history[0]
    raise PatchError(f"{proof} did not run ({code}):\n{text[-3000:]}")


def judge_all(
    mutants: Sequence[Mutant], workers: int, progress: Progress, *, every: bool
) -> list[Verdict]:
    """In their order."""
    task = progress.add_task("mutants", total=len(mutants))

    def one(mutant: Mutant) -> Verdict:
        verdict = judge(mutant, every=every or mutant is CONTROL)
        progress.console.print(f"{verdict.seconds:4.0f} s  {mutant.name}: {verdict.killers}")
        progress.advance(task)
        return verdict

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, mutants))


def table_of(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="Mutants")
    for heading in HEADER:
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        name, invariant, killer, *rest = verdict.cells
        style = "" if verdict.right else "bold red"
        table.add_row(name, invariant, Text(killer, style), *rest)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--all", action="store_true", help="every proof, though one has failed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"also writes docs/{page.PAGE.name}")
    arguments = parser.parse_args()
    if arguments.write and (arguments.only or arguments.all):
        parser.error("what is written down is the table of all, each to its first killer")
    mutants = [CONTROL, *(m for m in MUTANTS if arguments.only in m.name)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    began = time.monotonic()
    with Progress(console=Console(stderr=True, width=200)) as progress:
        verdicts = judge_all(mutants, arguments.workers, progress, every=arguments.all)
    console.print(table_of(verdicts))
    killed = sum(v.killed for v in verdicts)
    wrong = [v for v in verdicts if not v.right]
    verdict = (
        f"{killed} of {len(mutants) - 1} mutants killed in {time.monotonic() - began:.0f} s;"
        f" {'all proofs hold where nothing is broken' if not wrong else f'{len(wrong)} WRONG'}."
    )
    console.print(verdict)
    if arguments.write:
        said = (
            f"Printed by `make prove-mutants ARGS='--write'` on: {machine()}. The simulation's seed"
            f" is {SEED}."
        )
        page.write("prove-mutants", said, HEADER, [v.cells for v in verdicts], verdict)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
