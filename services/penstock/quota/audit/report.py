"""What an audit says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FINDINGS_MAX = 100
"""Of each check: a broken ledger is broken after the first hundred, too."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is (at least 1)."""


def quiet(stage: str, done: int, total: int) -> None:
    """For who does not watch."""


class Busy(Exception):
    """Somebody held a lock for all of the tries; nothing is half-done, run it again."""


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant and what breaks it; empty: it holds."""

    name: str
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        checks: Each invariant.
        entries: How many were read: those after the checkpoint.
        reservations, buckets: How many rows were looked at.
        posted_nano_usd: All that was ever posted, once for each attempt.
        base_epoch: The epoch whose checkpoint was built on; None: the very beginning.
        epochs: Of each epoch after it: (id, entries, nano-USD posted).
        verified_epochs: Sealed ones that were read again: (id, the digest of its entries in
            hexadecimal); one that is not what was sealed is told.
        gone_epochs: Sealed ones whose entries are no longer in the database.
    """

    checks: tuple[Check, ...]
    entries: int
    reservations: int
    buckets: int
    posted_nano_usd: int
    base_epoch: int | None = None
    epochs: tuple[tuple[int, int, int], ...] = ()
    verified_epochs: tuple[tuple[int, str], ...] = ()
    gone_epochs: tuple[int, ...] = ()

    @property
    def findings(self) -> list[str]:
        """Of all checks."""
        return [finding for check in self.checks for finding in check.findings]

    @property
    def ok(self) -> bool:
        return not self.findings


@dataclass
class Findings:
    """What was found so far, by check; of each at most FINDINGS_MAX."""

    names: Sequence[str]
    _found: dict[str, list[str]] = field(default_factory=dict)

    def room(self, name: str) -> int:
        """How many more are of interest."""
        return FINDINGS_MAX - len(self._found.get(name, ()))

    def add(self, name: str, texts: Sequence[str]) -> None:
        assert name in self.names, name
        self._found.setdefault(name, []).extend(texts[: self.room(name)])

    def checks(self) -> tuple[Check, ...]:
        return tuple(Check(name, tuple(self._found.get(name, ()))) for name in self.names)
