"""Models, and where a request would go, as tables. Money is exact decimal USD."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.errors import CliError
from penstock.cli.tables import Listed, plain
from penstock.client import PenstockError
from penstock.core.money import format_usd
from penstock.router.v1 import router_pb2

_ADMITS = Text("admits", "green")
_REFUSES = Text("refuses", "red")
_UNKNOWN = Text("unknown", "yellow")


def models_table(models: Sequence[router_pb2.Model]) -> Listed:
    numbers = ("context", "output", "USD/Mtok in", "out", "ready")
    drops = ("output", "context", "kind", "ready")
    columns = ("model", "kind", *numbers, "answered by")
    table = plain("", *columns, right=numbers, drops=drops, whole=("model",))
    for model in models:
        table.add_row(
            model.id,
            router_pb2.Model.Kind.Name(model.kind).removeprefix("KIND_").lower(),
            str(model.context_tokens or ""),
            str(model.max_output_tokens or ""),
            _price(model, "input_nano_usd_per_mtok"),
            _price(model, "output_nano_usd_per_mtok"),
            str(model.ready_replicas) if model.HasField("ready_replicas") else "",
            ", ".join(model.targets),
        )
    return table


def _price(model: router_pb2.Model, field: Any) -> str:
    return format_usd(getattr(model, field)) if model.HasField(field) else ""


def plan_table(plan: router_pb2.ExplainRouteResponse) -> Listed:
    """The attempts in their order, then what was left out."""
    numbers = ("USD at most", "wait", "max tokens")
    columns = ("", "answered by", "why", "ledger", *numbers)
    table = plain("", *columns, right=numbers, drops=("max tokens", "wait"))
    for number, attempt in enumerate(plan.attempts, 1):
        table.add_row(
            str(number),
            f"{attempt.provider}/{attempt.model}",
            attempt.reason,
            _verdict(attempt),
            format_usd(attempt.cost_bound_nano_usd),
            f"{attempt.expected_wait_ms} ms",
            str(attempt.max_tokens),
        )
    for rejected in plan.rejected:
        table.add_row("—", f"{rejected.provider}/{rejected.model}", rejected.reason, style="dim")
    return table


def _verdict(attempt: router_pb2.PlannedAttempt) -> Text:
    if not attempt.HasField("admitted"):
        return _UNKNOWN
    return _ADMITS if attempt.admitted else _REFUSES


def refusal_of(attempt: router_pb2.PlannedAttempt) -> PenstockError | None:
    """The error that the attempt would be refused with."""
    if not attempt.HasField("refusal"):
        return None
    refusal = attempt.refusal
    after_ms = refusal.retry_after_ms if refusal.HasField("retry_after_ms") else None
    return PenstockError(
        refusal.message,
        reason=refusal.reason,
        metadata=dict(refusal.metadata),
        retry_after_seconds=None if after_ms is None else after_ms / 1000,
    )


def refusals_table(refusals: Sequence[tuple[int, CliError]]) -> Table:
    """By the number of the attempt: what is wrong, and what to do; that once."""
    table = Table.grid(padding=(0, 1))
    for remedy, group in groupby(refusals, key=lambda one: one[1].remedy):
        for number, told in group:
            table.add_row(f" {number}", Text(told.message))
        if remedy:
            table.add_row("", Text(f"→ {remedy}"))
    return table
