"""A rule of the ledger, broken on purpose."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`proof`: the one to try first; the others follow if it survives."""

    name: str
    invariant: str
    file: str
    old: str
    new: str
    proof: str = "scenarios"
