"""What an alert says: one sentence with who, how much, and what to do. Money in USD, exact."""

from collections.abc import Callable, Mapping
from typing import Any

from penstock.core.money import format_usd
from penstock.quota.alerts.alert import Alert

Detail = Mapping[str, Any]


def message(alert: Alert) -> str:
    """One sentence. A detail that lacks a fact (written by another version) is told in general."""
    write = _WRITERS.get(alert.kind)
    who = alert.account or "the ledger"
    try:
        text = write(who, alert.detail) if write else ""
    except (KeyError, TypeError, ValueError):
        text = ""
    text = text or f"{who} has an alert of kind {alert.kind}: see `penstock alerts list --json`"
    # A provider's name is written as it is.
    provider = str(alert.detail.get("provider", ""))
    return text if provider and text.startswith(provider) else text[0].upper() + text[1:]


def _threshold(who: str, d: Detail) -> str:
    budget = f'its budget "{d["budget_name"]}" ({d["window"]})'
    numbers = f"{_usd(d['spent_nano_usd'])} of {_usd(d['limit_nano_usd'])} USD"
    if int(d["percent"]) >= 100:
        until = "" if d["window"] == "total" else "the window ends or "
        return (
            f"{who} has used up {budget}, {numbers}: requests that it covers are refused until"
            f" {until}`penstock budget set` raises the limit"
        )
    return (
        f"{who} has used {int(d['percent'])} % of {budget}, {numbers}: raise the limit with"
        " `penstock budget set` if that is more than was planned"
    )


def _forecast(who: str, d: Detail) -> str:
    return (
        f'{who} will have used up its budget "{d["budget_name"]}" ({d["window"]}) by'
        f" {d['exhausted_at']}, before the window ends at {d['window_ends_at']}, if it goes on as"
        f" so far ({_usd(d['spent_nano_usd'])} of {_usd(d['limit_nano_usd'])} USD): raise the"
        " limit with `penstock budget set`, or spend less"
    )


def _overage(who: str, d: Detail) -> str:
    over = int(d["posted_nano_usd"]) - int(d["amount_nano_usd"])
    return (
        f"{who} was charged {_usd(d['posted_nano_usd'])} USD for an attempt that held"
        f" {_usd(d['amount_nano_usd'])} USD ({_usd(over)} USD more, reservation"
        f" {d['reservation_id']}): check the model's price and token bounds in the catalogue"
    )


def _late(who: str, d: Detail) -> str:
    return (
        f"{who} was charged {_usd(d['posted_nano_usd'])} USD after the hold of"
        f" {_usd(d['amount_nano_usd'])} USD had expired (reservation {d['reservation_id']}): see"
        " whether its router was down, or its deadlines are too short"
    )


def _suspense(who: str, d: Detail) -> str:
    count = int(d["reservations"])
    attempts = "1 abandoned attempt" if count == 1 else f"{count} abandoned attempts"
    return (
        f"{who} has {_usd(d['suspense_nano_usd'])} USD in suspense for over"
        f" {int(d['older_than_hours'])} hours, from {attempts} at {d['provider']} that expired"
        f" in the hour from {d['hour']}: reconcile with the provider's export, or resolve them"
        " one by one (`penstock ledger --help`)"
    )


def _drift(who: str, d: Detail) -> str:
    drift = int(d["drift_nano_usd"])
    more = "more" if drift > 0 else "less"
    whose = "" if who == "the ledger" else f" for {who}"
    return (
        f"{d['provider']} reports {_usd(d['reported_nano_usd'])} USD for {d['model']} on"
        f" {d['day']}{whose}, {_usd(abs(drift))} USD {more} than the"
        f" {_usd(d['posted_nano_usd'])} USD that the ledger can explain: look for keys used"
        " outside Penstock and for wrong prices in the catalogue"
    )


def _grant(who: str, d: Detail) -> str:
    return (
        f"{who} loses {_usd(d['unused_nano_usd'])} of {_usd(d['amount_nano_usd'])} USD of its"
        f' grant "{d["grant_name"]}" at {d["expires_at"]}: use it before, or create another'
        " with `penstock grant create`"
    )


def _test(_who: str, _detail: Detail) -> str:
    return "this is a test of Penstock's alerts, nothing needs to be done"


def _usd(nano_usd: Any) -> str:
    return format_usd(int(nano_usd))


_WRITERS: dict[str, Callable[[str, Detail], str]] = {
    "budget_threshold": _threshold,
    "budget_exhaustion_forecast": _forecast,
    "overage": _overage,
    "late_settle": _late,
    "suspense_old": _suspense,
    "drift": _drift,
    "grant_expiring": _grant,
    "test": _test,
}
