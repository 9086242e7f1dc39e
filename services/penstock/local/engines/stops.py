"""Stop sequences, found in a text as it comes. Pure."""

from collections.abc import Sequence


class StopReader:
    """One choice: its text goes through, but for what may be the start of a stop sequence."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._held = ""
        self.stopped = False
        """A sequence was found: the choice has ended before it."""

    def feed(self, text: str, *, last: bool) -> str:
        """What `text` lets out; after `last` nothing is held back, after a stop nothing comes."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for s in self._sequences if (at := self._held.find(s)) >= 0]
        self.stopped = bool(found)
        kept = 0 if last else max((overlap(self._held, s) for s in self._sequences), default=0)
        end = min(found, default=len(self._held) - kept)
        ready, self._held = self._held[:end], self._held[end:]
        return ready


def overlap(text: str, sequence: str) -> int:
    """Length of the longest end of `text` that begins `sequence` and is not the whole of it."""
    for length in range(min(len(text), len(sequence) - 1), 0, -1):
        if sequence.startswith(text[-length:]):
            return length
    return 0
