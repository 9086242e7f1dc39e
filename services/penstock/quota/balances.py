"""GetBalance and WatchBalance."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from penstock.core import errors
from penstock.quota.account import (
    AccountKind,
    format_budget_id,
    format_grant_id,
    format_id,
    format_limit_id,
)
from penstock.quota.admin.shapes import any_account, stamp
from penstock.quota.checks import Faults
from penstock.quota.store.balance_store import BalanceStore
from penstock.quota.store.budget_store import scope_of
from penstock.quota.v1 import quota_pb2

INTERVAL_MS_MIN = 100
INTERVAL_MS_MAX = 60_000
INTERVAL_MS_DEFAULT = 1_000
WATCHES_MAX = 1_000
"""Of one process: each is one small query an interval."""


class Balances:
    """Answers and follows what is left."""

    def __init__(self, balances: BalanceStore) -> None:
        self._balances = balances
        self._ended = asyncio.Event()
        self._watches = 0

    def end_streams(self) -> None:
        """Every watch ends now, and new ones after their first answer: the process drains."""
        self._ended.set()

    async def get(self, request: quota_pb2.GetBalanceRequest) -> quota_pb2.Balance:
        """Raises InvalidRequest, NotFound (<KIND>_UNKNOWN)."""
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id)
        faults.check()
        return await self._read(kind, account_id)

    async def watch(
        self, request: quota_pb2.WatchBalanceRequest
    ) -> AsyncIterator[quota_pb2.Balance]:
        """The balance now, and again whenever it differs in anything but its time.

        Raises:
            InvalidRequest, NotFound (<KIND>_UNKNOWN).
            Unavailable: WATCHES_TOO_MANY, or the ledger went away: watch again.
        """
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id)
        interval_ms = request.interval_ms or INTERVAL_MS_DEFAULT
        faults.integer("interval_ms", interval_ms, low=INTERVAL_MS_MIN, high=INTERVAL_MS_MAX)
        faults.check()
        if self._watches >= WATCHES_MAX:
            raise errors.Unavailable(
                f"{WATCHES_MAX} balances are watched here already; ask again, or elsewhere",
                reason="WATCHES_TOO_MANY",
                retry_after_seconds=1.0,
            )
        self._watches += 1
        try:
            told: quota_pb2.Balance | None = None
            while told is None or not self._ended.is_set():
                balance = await self._read(kind, account_id)
                if told is None or not _same(told, balance):
                    told = balance
                    yield balance
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_ms / 1000):
                        await self._ended.wait()
        finally:
            self._watches -= 1

    async def _read(self, kind: AccountKind, account_id: int) -> quota_pb2.Balance:
        return balance_message(await self._balances.balance(kind, account_id))


def _same(told: quota_pb2.Balance, balance: quota_pb2.Balance) -> bool:
    timeless = quota_pb2.Balance()
    timeless.CopyFrom(balance)
    timeless.at.CopyFrom(told.at)
    return timeless == told


def balance_message(rows: Sequence[Any]) -> quota_pb2.Balance:
    """From the rows of BalanceStore."""
    message = quota_pb2.Balance()
    for row in rows:
        if row["what"] == "account":
            message.at.FromDatetime(row["starts_at"])
        elif row["what"] == "grant":
            message.grants.append(_grant(row))
        elif row["what"] == "unusable":
            message.unusable_grants.append(_grant(row))
        elif row["unit"] == "nano_usd":
            message.budgets.append(_budget(row))
        else:
            message.rates.append(_rate(row))
    return message


def _budget(row: Any) -> quota_pb2.BudgetBalance:
    limit = row["limit_amount"]
    used = row["posted"] + row["held"] + row["suspense"]
    return quota_pb2.BudgetBalance(
        budget_id=format_budget_id(row["id"]),
        name=row["name"],
        account_kind=row["account_kind"],
        account_id=format_id(row["account_kind"], row["account_id"]),
        window=row["window"],
        limit_nano_usd=limit,
        posted_nano_usd=row["posted"],
        held_nano_usd=row["held"],
        suspense_nano_usd=row["suspense"],
        remaining_nano_usd=None if limit is None else limit - used,
        resets_at=stamp(row["ends_at"]),
        soft_percents=row["soft_percents"],
        **_scope(row),
    )


def _rate(row: Any) -> quota_pb2.RateBalance:
    return quota_pb2.RateBalance(
        limit_id=format_limit_id(row["id"]),
        name=row["name"],
        account_kind=row["account_kind"],
        account_id=format_id(row["account_kind"], row["account_id"]),
        unit=row["unit"],
        window=row["window"],
        limit=row["limit_amount"],
        used=row["posted"] + row["held"] + row["suspense"],
        resets_at=stamp(row["ends_at"]),
        **_scope(row),
    )


def _grant(row: Any) -> quota_pb2.GrantBalance:
    spent = row["posted"] + row["held"] + row["suspense"] + row["lapsed"]
    return quota_pb2.GrantBalance(
        grant_id=format_grant_id(row["id"]),
        name=row["name"],
        account_kind=row["account_kind"],
        account_id=format_id(row["account_kind"], row["account_id"]),
        amount_nano_usd=row["limit_amount"],
        posted_nano_usd=row["posted"],
        held_nano_usd=row["held"],
        suspense_nano_usd=row["suspense"],
        lapsed_nano_usd=row["lapsed"],
        remaining_nano_usd=row["limit_amount"] - spent,
        starts_at=stamp(row["starts_at"]),
        expires_at=stamp(row["ends_at"]),
        state=row["state"],
        commercial_use=row["commercial_use"],
        **_scope(row),
    )


def _scope(row: Any) -> dict[str, Any]:
    scope = scope_of(row)
    return {"providers": scope.providers, "models": scope.models, "tags": scope.tags}
