"""What the real ledger answered, in the auditor's words."""

from typing import Any

from penstock.quota.ledger import Answer, Extend, Operation, Reserve
from penstock.quota.refusals import RateRefused
from penstock.quota.store.ledger_store import Outcome
from support.auditor import Verdict


def verdict_of(operation: Operation, outcome: Outcome, *, first: bool = True) -> Verdict:
    """`first`: not the repeat of a refusal, which tells what was true when it was made."""
    if not isinstance(outcome, Answer):
        if isinstance(outcome, RateRefused) and first:
            wait_seconds = outcome.retry_after_seconds
            return outcome.reason, (None if wait_seconds is None else round(wait_seconds, 3),)
        return outcome.reason, ()
    facts: tuple[Any, ...] = (
        outcome.posted_nano_usd,
        outcome.released_nano_usd,
        outcome.overage,
        outcome.late,
    )
    if isinstance(operation, Reserve | Extend):
        facts = (outcome.expires_at, outcome.remaining_nano_usd)
    return "ok", facts


def differ(operation: Operation, outcome: Outcome, wanted: Verdict, *, first: bool) -> str:
    """Why the two do not agree; empty: they do."""
    got = verdict_of(operation, outcome, first=first)
    reason, facts = wanted
    # Of a refused settle or void only the reason is told, and of a repeated refusal.
    expected = (reason, facts if reason == "ok" or (first and reason == "RATE_LIMITED") else ())
    return "" if got == expected else f"{operation}: the ledger says {got}, the auditor {expected}"
