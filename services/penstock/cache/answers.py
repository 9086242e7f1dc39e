"""Which answers may be kept. Pure."""

from penstock.cache.v1.cache_pb2 import Answer
from penstock.core.errors import FieldViolation
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
)

COMPLETE = frozenset({FINISH_REASON_STOP, FINISH_REASON_LENGTH, FINISH_REASON_TOOL_CALLS})
"""A choice that ended so is what the request asked for. A filter or a budget cut others short."""

NO_STORE = "NO_STORE"
TOO_LARGE = "TOO_LARGE"


def faults(answer: Answer) -> list[FieldViolation]:
    """Why the answer is not a complete one; empty where it is."""
    found = []
    if not answer.choices:
        found.append(FieldViolation("answer.choices", "is empty; only a complete answer is kept"))
    found += [
        FieldViolation(
            f"answer.choices[{i}].finish_reason",
            "must be STOP, LENGTH or TOOL_CALLS; only a complete answer is kept",
        )
        for i, choice in enumerate(answer.choices)
        if choice.finish_reason not in COMPLETE
    ]
    if answer.usage.estimated:
        found.append(
            FieldViolation(
                "answer.usage.estimated", "is true; a broken stream's answer is not kept"
            )
        )
    return found


def refusal(size_bytes: int, *, no_store: bool, entry_bytes_max: int) -> str:
    """Why no entry is made of it; empty: it is kept."""
    if no_store:
        return NO_STORE
    return TOO_LARGE if size_bytes > entry_bytes_max else ""
