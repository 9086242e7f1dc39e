"""Entries as a table: who, what, how much, why. Money is exact decimal USD."""

import json
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from penstock.cli.names import Named, label
from penstock.cli.tables import plain, when_exactly
from penstock.core.money import format_usd
from penstock.quota.v1 import quota_pb2

FLAGS = ("estimated", "overage", "late")
AMOUNTS = ("posted USD", "held", "suspense")
DROPS = ("reservation", "tokens", "entry", "answered by", "held", "of", "what", "suspense")


def entries_table(entries: Sequence[quota_pb2.Entry], known: Sequence[Named]) -> Table:
    """In their order. Changes of what is held and in suspense bear their sign."""
    columns = ("entry", "at", "operation", "of", "request", "reservation", "answered by")
    of_requests = sum(bool(entry.request_id) for entry in entries)
    # The ids are long: where few entries have one, whose they are and why tells more.
    drops = [*DROPS]
    drops.insert(drops.index("of") if of_requests * 2 <= len(entries) else len(drops), "request")
    table = plain(
        "", *columns, *AMOUNTS, "tokens", "what",
        right=("entry", *AMOUNTS, "tokens"), drops=drops, whole=("request", "reservation"),
    )  # fmt: skip
    for entry in entries:
        tokens = (entry.prompt_tokens, entry.completion_tokens)
        table.add_row(
            str(entry.id),
            when_exactly(entry.at),
            entry.operation,
            label(known, entry.account_id or entry.key_id),
            Text(f"{entry.request_id} #{entry.attempt}" if entry.request_id else ""),
            entry.reservation_id,
            Text("/".join(filter(None, (entry.provider, entry.model)))),
            format_usd(entry.posted_nano_usd) if entry.posted_nano_usd else "",
            _change(entry.held_delta_nano_usd),
            _change(entry.suspense_delta_nano_usd),
            "+".join(map(str, tokens)) if any(tokens) else "",
            Text(what(entry)),
        )
    return table


def what(entry: quota_pb2.Entry) -> str:
    """Its outcome and marks, what was changed, who did it and why, who the request was for."""
    told = [entry.outcome, *(flag for flag in FLAGS if getattr(entry, flag))]
    told.append(_configured(entry.detail_json))
    if entry.actor:
        told.append(f"by {entry.actor}")
    if entry.reason:
        told.append(f"“{entry.reason}”")
    if entry.user:
        told.append(f"user {entry.user}")
    told += [f"{name}={value}" for name, value in sorted(entry.tags.items())]
    return ", ".join(filter(None, told))


def detached_note(detached: quota_pb2.DetachedEntries) -> str:
    """Where the entries are that an answer lacks, in a line."""
    *others, last = detached.tables or [""]
    tables = f"{', '.join(others)} and {last}" if others else last
    where = f"lie in {tables} of the ledger's database" if tables else "are no longer there"
    return f"entries before {when_exactly(detached.before)} were detached: they {where}"


def _change(nano_usd: int) -> str:
    return "" if nano_usd == 0 else ("+" if nano_usd > 0 else "") + format_usd(nano_usd)


def _configured(detail_json: str) -> str:
    """The name of what was changed; before and after are in the JSON document."""
    try:
        detail = json.loads(detail_json) if detail_json else None
    except ValueError:
        return ""
    named = detail.get("what") if isinstance(detail, dict) else None
    return named if isinstance(named, str) else ""
