"""A rule of the ledger, broken on purpose."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`proof`: the one to try first, the others follow; `first`: which file of its scenarios."""

    name: str
    invariant: str
    file: str
    old: str
    new: str
    proof: str = "scenarios"
    first: str = ""
