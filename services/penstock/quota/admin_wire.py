"""Domain → proto for operators."""

from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.quota import wire
from penstock.quota.account import (
    Account,
    AccountKind,
    Budget,
    Key,
    format_budget_id,
    format_id,
)
from penstock.quota.v1 import admin_pb2

_KINDS = {"org": admin_pb2.Account.KIND_ORG, "team": admin_pb2.Account.KIND_TEAM}
_ACCOUNT_KINDS: dict[str, AccountKind] = {"org": "org", "team": "team", "key": "key"}
_WINDOWS = {"total": admin_pb2.Budget.WINDOW_TOTAL, "month": admin_pb2.Budget.WINDOW_MONTH}


def kind_of(account_id: str) -> AccountKind:
    """Of an id that was checked."""
    return _ACCOUNT_KINDS[account_id.split("_", maxsplit=1)[0]]


def account(value: Account) -> admin_pb2.Account:
    return admin_pb2.Account(
        id=format_id(value.kind, value.id),
        kind=_KINDS[value.kind],
        name=value.name,
        org_id="" if value.org_id is None else format_id("org", value.org_id),
        suspended=value.suspended,
        created_at=timestamp(value.created_at),
    )


def key(value: Key) -> admin_pb2.Key:
    policy = value.policy
    return admin_pb2.Key(
        id=format_id("key", value.id),
        name=value.name,
        org_id=format_id("org", value.org_id),
        team_id=format_id("team", value.team_id),
        state=wire.state_of(value),
        allowed_models=policy.allowed_models,
        local_only=policy.local_only,
        fail_open_local=policy.fail_open_local,
        created_at=timestamp(value.created_at),
        expires_at=None if policy.expires_at is None else timestamp(policy.expires_at),
        prefix=value.prefix,
    )


def budget(value: Budget) -> admin_pb2.Budget:
    return admin_pb2.Budget(
        id=format_budget_id(value.id),
        name=value.name,
        account_id=format_id(value.account_kind, value.account_id),
        window=_WINDOWS[value.window],
        time_zone=value.time_zone,
        limit_nano_usd=value.limit_nano_usd or 0,
        unlimited=value.limit_nano_usd is None,
        posted_nano_usd=value.posted_nano_usd,
        held_nano_usd=value.held_nano_usd,
        suspense_nano_usd=value.suspense_nano_usd,
        resets_at=None if value.resets_at is None else timestamp(value.resets_at),
    )


def entry(row: Any) -> admin_pb2.Entry:
    settles = row["settles"]
    return admin_pb2.Entry(
        id=row["id"],
        at=timestamp(row["at"]),
        operation=row["operation"],
        reservation_id=str(row["reservation_id"]),
        request_id=row["request_id"],
        attempt=row["attempt"],
        key_id=format_id("key", row["key_id"]),
        provider=row["provider"],
        model=row["model"],
        posted_nano_usd=row["posted"],
        held_delta_nano_usd=row["held"],
        suspense_delta_nano_usd=row["suspense"],
        prompt_tokens=row["prompt_tokens"] if settles else 0,
        completion_tokens=row["completion_tokens"] if settles else 0,
        estimated=settles and row["estimated"],
        overage=settles and row["overage"],
        late=row["late"],
        outcome=row["outcome"] or "",
        trace_id=row["trace_id"] or "",
    )


def usage_row(row: Any) -> admin_pb2.UsageRow:
    return admin_pb2.UsageRow(
        org_id=format_id("org", row["org_id"]),
        team_id=format_id("team", row["team_id"]),
        key_id=format_id("key", row["key_id"]),
        provider=row["provider"],
        model=row["model"],
        attempts=row["attempts"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        posted_nano_usd=row["posted"],
        held_nano_usd=row["held"],
        suspense_nano_usd=row["suspense"],
        estimated_nano_usd=row["estimated"],
    )


def timestamp(value: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(value)
    return message
