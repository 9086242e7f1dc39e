"""What is wrong with an export: which file, where in it, which field, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

FAULTS_SHOWN_MAX = 20
"""A file of another kind has a fault in each line: the first ones tell it all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one file.

    Attributes:
        file: As it was named.
        place: "line 7", or a JSON path such as "$.data[3].results[0]".
        field: The faulty field or column; "" where the whole place is at fault.
        problem: What is wrong with it.
        remedy: What to do about it.
    """

    file: str
    place: str
    field: str
    problem: str
    remedy: str

    @property
    def text(self) -> str:
        field = f" {self.field}" if self.field else ""
        return f"{self.file}, {self.place}:{field} {self.problem}. {self.remedy}."


class FaultyReport(Exception):
    """An export that cannot be relied on; nothing of it is taken."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        assert faults
        shown = [fault.text for fault in faults[:FAULTS_SHOWN_MAX]]
        if len(faults) > FAULTS_SHOWN_MAX:
            shown.append(f"… and {len(faults) - FAULTS_SHOWN_MAX} more")
        super().__init__("\n".join(shown))
        self.faults = tuple(faults)


class Collector:
    """The faults of one file as they are found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Fault] = []

    def add(self, place: str, field: str, problem: str, remedy: str) -> None:
        self.found.append(Fault(self.file, place, field, problem, remedy))

    def check(self) -> None:
        if self.found:
            raise FaultyReport(self.found)
