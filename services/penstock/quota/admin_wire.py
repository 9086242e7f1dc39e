"""Domain → proto for operators."""

import json
from typing import Any

from penstock.quota import wire
from penstock.quota.account import (
    Account,
    Key,
    KeyText,
    Pool,
    format_budget_id,
    format_grant_id,
    format_id,
    format_limit_id,
)
from penstock.quota.admin.shapes import WINDOWS, scope_message, stamp
from penstock.quota.budget import Budget, Grant
from penstock.quota.store.adjust_store import PostedOn
from penstock.quota.store.detached import Detached
from penstock.quota.v1 import admin_pb2, quota_pb2

_KINDS = {
    "org": admin_pb2.Account.KIND_ORG,
    "team": admin_pb2.Account.KIND_TEAM,
    "pool": admin_pb2.Account.KIND_POOL,
}
_WINDOWS = {kind: window for window, kind in WINDOWS.items()}
_UNITS = {
    "requests": admin_pb2.RateLimit.UNIT_REQUESTS,
    "tokens": admin_pb2.RateLimit.UNIT_TOKENS,
    "in_flight": admin_pb2.RateLimit.UNIT_IN_FLIGHT,
}


def account(value: Account) -> admin_pb2.Account:
    return admin_pb2.Account(
        id=format_id(value.kind, value.id),
        kind=_KINDS[value.kind],
        name=value.name,
        org_id="" if value.org_id is None else format_id("org", value.org_id),
        suspended=value.suspended,
        prepaid=value.prepaid,
        commercial=value.commercial,
        created_at=stamp(value.created_at),
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
        created_at=stamp(value.created_at),
        expires_at=stamp(policy.expires_at),
        prefix=value.prefix,
        secrets=value.secrets,
    )


def key_text(value: KeyText) -> admin_pb2.KeyText:
    return admin_pb2.KeyText(
        prefix=value.prefix,
        created_at=stamp(value.created_at),
        valid_until=stamp(value.valid_until),
        valid_until_before=stamp(value.valid_until_before),
    )


def pool(value: Pool) -> admin_pb2.Pool:
    return admin_pb2.Pool(
        id=format_id("pool", value.id),
        name=value.name,
        providers=value.providers,
        prepaid=value.prepaid,
        closed=not value.providers,
    )


def budget(value: Budget, before: Budget | None = None) -> admin_pb2.Budget:
    """`before`: of one that was changed just now."""
    return admin_pb2.Budget(
        id=format_budget_id(value.id),
        name=value.name,
        account_id=format_id(value.account_kind, value.account_id),
        window=_WINDOWS[value.window],  # type: ignore[arg-type]
        time_zone=value.time_zone,
        limit_nano_usd=value.limit or 0,
        unlimited=value.limit is None,
        posted_nano_usd=value.posted,
        held_nano_usd=value.held,
        suspense_nano_usd=value.suspense,
        resets_at=stamp(value.resets_at),
        scope=scope_message(value.scope),
        soft_percents=value.soft_percents,
        closed=value.closed,
        before=None if before is None else budget(before),
    )


def rate_limit(value: Budget, before: Budget | None = None) -> admin_pb2.RateLimit:
    """`before`: of one that was changed just now."""
    return admin_pb2.RateLimit(
        id=format_limit_id(value.id),
        name=value.name,
        account_id=format_id(value.account_kind, value.account_id),
        unit=_UNITS[value.unit],
        window=_WINDOWS[value.window],  # type: ignore[arg-type]
        limit=value.limit or 0,
        used=value.posted + value.held + value.suspense,
        scope=scope_message(value.scope),
        resets_at=stamp(value.resets_at),
        closed=value.closed,
        time_zone=value.time_zone,
        before=None if before is None else rate_limit(before),
    )


def grant(value: Grant) -> admin_pb2.Grant:
    return admin_pb2.Grant(
        id=format_grant_id(value.id),
        grant_key=value.grant_key,
        account_id=format_id(value.account_kind, value.account_id),
        name=value.name,
        reason=value.reason,
        amount_nano_usd=value.amount_nano_usd,
        starts_at=stamp(value.starts_at),
        expires_at=stamp(value.expires_at),
        scope=scope_message(value.scope),
        commercial_use=value.commercial_use,
        posted_nano_usd=value.posted_nano_usd,
        held_nano_usd=value.held_nano_usd,
        suspense_nano_usd=value.suspense_nano_usd,
        lapsed_nano_usd=value.lapsed_nano_usd,
        created_at=stamp(value.created_at),
    )


def entry(row: Any) -> quota_pb2.Entry:
    """From a row of EntryStore. What belongs to an attempt's end is told with that entry only."""
    settles = row["settles"]
    account_id = format_id(row["account_kind"], row["account_id"])
    return quota_pb2.Entry(
        id=row["id"],
        at=stamp(row["at"]),
        operation=row["operation"],
        reservation_id=str(row["reservation_id"] or ""),
        request_id=row["request_id"],
        attempt=row["attempt"],
        key_id=account_id if row["account_kind"] == "key" else "",
        provider=row["provider"],
        model=row["model"],
        posted_nano_usd=row["posted"],
        held_delta_nano_usd=row["held"],
        suspense_delta_nano_usd=row["suspense"],
        prompt_tokens=(row["prompt_tokens"] or 0) if settles else 0,
        completion_tokens=(row["completion_tokens"] or 0) if settles else 0,
        estimated=settles and row["estimated"],
        overage=settles and row["overage"],
        late=row["late"],
        outcome=row["outcome"],
        trace_id=row["trace_id"],
        user=row["end_user"],
        tags=json.loads(row["tags"] or "{}"),
        actor=row["actor"],
        reason=row["reason"],
        account_id=account_id,
        detail_json=row["detail"],
    )


def posted_on(value: PostedOn) -> admin_pb2.PostedOn:
    return admin_pb2.PostedOn(
        id=format_budget_id(value.id) if value.is_budget else format_grant_id(value.id),
        name=value.name,
        account_id=format_id(value.account_kind, value.account_id),
        scope=scope_message(value.scope),
        amount_nano_usd=value.amount_nano_usd,
    )


def detached(value: Detached) -> quota_pb2.DetachedEntries:
    return quota_pb2.DetachedEntries(before=stamp(value.before), tables=value.tables)


def usage_row(row: Any) -> admin_pb2.UsageRow:
    return admin_pb2.UsageRow(
        org_id=format_id("org", row["org_id"]),
        team_id="" if row["team_id"] is None else format_id("team", row["team_id"]),
        key_id="" if row["key_id"] is None else format_id("key", row["key_id"]),
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
