"""Accounts, pools and keys as operators make and change them, and what is recorded of it."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from penstock.core.ids import uuid7
from penstock.quota import wire
from penstock.quota.account import parse_id, secret_hash
from penstock.quota.admin_service import AdminParts
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.admin import OPERATOR, TRY, configured, fails, new_path, snapshot
from support.ledger import START, Ledger, reserve, told

ACTIVE = quota_pb2.Principal.STATE_ACTIVE
EXPIRED = quota_pb2.Principal.STATE_EXPIRED


def new_org(**fields: object) -> admin_pb2.CreateAccountRequest:
    return admin_pb2.CreateAccountRequest(
        kind=admin_pb2.Account.KIND_ORG,
        name=f"org-{uuid7()[-12:]}",
        **fields,
    )


async def new_key(ledger: Ledger, admin: AdminParts) -> admin_pb2.CreateKeyResponse:
    _, team_id, _ = await new_path(ledger)
    request = admin_pb2.CreateKeyRequest(team_id=team_id, name="k")
    return await admin.keys.create(request, OPERATOR)


async def principal(ledger: Ledger, secret: str) -> quota_pb2.Principal:
    key = await ledger.accounts.key_by_hash(secret_hash(secret))
    assert key is not None
    return wire.principal(key)


async def test_each_change_is_an_entry_of_who_and_why_and_what_was(
    ledger: Ledger, admin: AdminParts
) -> None:
    org = await admin.accounts.create(new_org(commercial=True), OPERATOR)
    request = admin_pb2.UpdateAccountRequest(account_id=org.id, prepaid=True, commercial=False)
    changed = await admin.accounts.update(request, OPERATOR)
    repeated = await admin.accounts.update(request, OPERATOR)

    assert (True, False, False) == (changed.prepaid, changed.commercial, changed.suspended)
    assert changed == repeated
    number = parse_id(org.id, "org")
    assert number is not None
    made, updated = await configured(ledger, number)
    assert ("create_account", None) == (made["what"], made["before"])
    assert ("update_account", False, True) == (
        updated["what"],
        updated["before"]["prepaid"],
        updated["after"]["prepaid"],
    )
    for row in await ledger.entries_of("configure", number):
        assert ("ops@example.org", "ticket 7", []) == (
            row["actor"],
            row["reason"],
            row["bucket_ids"],
        )


async def test_a_suspended_account_stops_its_keys(ledger: Ledger, admin: AdminParts) -> None:
    key_id = await ledger.new_key(100)
    (row,) = await ledger.fetch("SELECT org_id FROM accounts WHERE id = $1", key_id)
    request = admin_pb2.SetSuspendedRequest(account_id=f"org_{row['org_id']}", suspended=True)

    await admin.accounts.set_suspended(request, TRY)
    assert "ok" == told(await ledger.one(reserve(ledger.id(), key_id)))
    await admin.accounts.set_suspended(request, OPERATOR)
    assert "ACCOUNT_SUSPENDED" == told(await ledger.one(reserve(ledger.id(), key_id)))


async def test_a_dry_run_answers_and_changes_and_tells_nothing(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, team_id, key_id = await new_path(ledger)
    heard: list[object] = []
    connection = await asyncpg.connect(ledger.dsn)
    await connection.add_listener("penstock_keys", lambda *told: heard.append(told))
    before = await snapshot(ledger)

    created = await admin.keys.create(admin_pb2.CreateKeyRequest(team_id=team_id, name="dry"), TRY)
    rotated = await admin.keys.rotate(admin_pb2.RotateKeyRequest(key_id=key_id), TRY)
    revoked = await admin.keys.revoke(admin_pb2.RevokeKeyRequest(key_id=key_id), TRY)
    suspended = await admin.accounts.set_suspended(
        admin_pb2.SetSuspendedRequest(account_id=org_id, suspended=True), TRY
    )
    pool = await admin.accounts.set_pool(
        admin_pb2.SetPoolRequest(name="dry", providers=["dry"]), TRY
    )

    assert ("dry", "", "") == (created.key.name, created.secret, rotated.secret)
    assert quota_pb2.Principal.STATE_REVOKED == revoked.state
    assert suspended.suspended
    assert ["dry"] == list(pool.providers)
    assert before == await snapshot(ledger)
    assert "NOT_FOUND TEAM_UNKNOWN" == await fails(
        admin.keys.create(admin_pb2.CreateKeyRequest(team_id="team_99999999", name="k"), TRY)
    )
    # What is committed is heard, in the order of commits: the first is of the true change.
    await admin.keys.revoke(admin_pb2.RevokeKeyRequest(key_id=key_id), OPERATOR)
    async with asyncio.timeout(5):
        while not heard:
            await connection.execute("SELECT 1")
    assert 1 == len(heard)
    await connection.close()


async def test_a_rotated_key_has_two_texts_until_the_overlap_ends(
    ledger: Ledger, admin: AdminParts
) -> None:
    old = await new_key(ledger, admin)
    new = await admin.keys.rotate(
        admin_pb2.RotateKeyRequest(key_id=old.key.id, overlap_seconds=60), OPERATOR
    )

    assert (old.key.id, 2) == (new.key.id, new.key.secrets)
    assert new.secret.startswith(new.key.prefix)
    assert old.secret != new.secret
    during = await principal(ledger, old.secret)
    assert (ACTIVE, old.key.id) == (during.state, during.key_id)
    assert START + timedelta(seconds=60) == during.expires_at.ToDatetime(UTC)
    assert not (await principal(ledger, new.secret)).HasField("expires_at")
    await ledger.advance(timedelta(seconds=60))
    assert EXPIRED == (await principal(ledger, old.secret)).state
    assert ACTIVE == (await principal(ledger, new.secret)).state
    (listed,) = [
        key
        for key in (await admin.keys.list(admin_pb2.ListKeysRequest(team_id=old.key.team_id))).keys
        if key.id == old.key.id
    ]
    assert 1 == listed.secrets
    assert old.secret not in str(await configured(ledger, int(old.key.id[4:])))


async def test_a_rotation_without_overlap_ends_the_texts_before_it(
    ledger: Ledger, admin: AdminParts
) -> None:
    old = await new_key(ledger, admin)
    rotate = admin_pb2.RotateKeyRequest(key_id=old.key.id, overlap_seconds=3600)
    middle = await admin.keys.rotate(rotate, OPERATOR)
    rotate.overlap_seconds = 0
    new = await admin.keys.rotate(rotate, OPERATOR)

    states = [(await principal(ledger, one.secret)).state for one in (old, middle, new)]
    assert [EXPIRED, EXPIRED, ACTIVE] == states


async def test_a_rotation_says_when_the_texts_before_it_end(
    ledger: Ledger, admin: AdminParts
) -> None:
    old = await new_key(ledger, admin)
    rotate = admin_pb2.RotateKeyRequest(key_id=old.key.id, overlap_seconds=3600)
    middle = await admin.keys.rotate(rotate, OPERATOR)
    assert [(old.key.prefix, START + timedelta(hours=1))] == ends(middle)
    await ledger.advance(timedelta(seconds=1))
    rotate.overlap_seconds = 7200
    new = await admin.keys.rotate(rotate, OPERATOR)
    # The first one ends no later than it was to.
    assert [
        (middle.key.prefix, START + timedelta(hours=2, seconds=1)),
        (old.key.prefix, START + timedelta(hours=1)),
    ] == ends(new)
    assert [] == list(old.before)
    await ledger.advance(timedelta(hours=1))
    rotate.overlap_seconds = 0
    # What has ended already is not told of again.
    last = await admin.keys.rotate(rotate, OPERATOR)
    assert [new.key.prefix, middle.key.prefix] == [text.prefix for text in last.before]
    assert {ledger.now} == {at for _, at in ends(last)}


async def test_a_rotation_says_what_a_former_one_had_said_and_the_keys_own_end(
    ledger: Ledger, admin: AdminParts
) -> None:
    old = await new_key(ledger, admin)
    await ledger.advance(timedelta(hours=1))
    rotate = admin_pb2.RotateKeyRequest(key_id=old.key.id, overlap_seconds=7200)
    middle = await admin.keys.rotate(rotate, OPERATOR)
    assert [None] == said_before(middle)
    await ledger.advance(timedelta(hours=1))
    rotate.overlap_seconds = 60
    minute = START + timedelta(hours=2, minutes=1)
    sooner = await admin.keys.rotate(rotate, TRY)
    assert [(middle.key.prefix, minute), (old.key.prefix, minute)] == ends(sooner)
    assert [None, START + timedelta(hours=3)] == said_before(sooner)
    end = START + timedelta(hours=2, seconds=30)
    await admin.keys.update(admin_pb2.UpdateKeyRequest(key_id=old.key.id, expires_at=end), OPERATOR)
    with_key = await admin.keys.rotate(rotate, OPERATOR)
    assert [end, end] == [at for _, at in ends(with_key)]
    assert [None, end] == said_before(with_key)


def said_before(rotated: admin_pb2.CreateKeyResponse) -> list[datetime | None]:
    return [
        text.valid_until_before.ToDatetime(UTC) if text.HasField("valid_until_before") else None
        for text in rotated.before
    ]


def ends(rotated: admin_pb2.CreateKeyResponse) -> list[tuple[str, datetime]]:
    return [(text.prefix, text.valid_until.ToDatetime(UTC)) for text in rotated.before]


async def test_a_key_has_few_texts_at_once(ledger: Ledger, admin: AdminParts) -> None:
    key_id = (await new_key(ledger, admin)).key.id
    rotate = admin_pb2.RotateKeyRequest(key_id=key_id, overlap_seconds=60)
    for _ in range(7):
        await admin.keys.rotate(rotate, OPERATOR)

    expected = "FAILED_PRECONDITION KEY_SECRETS_TOO_MANY"
    assert expected == await fails(admin.keys.rotate(rotate, OPERATOR))
    rotate.overlap_seconds = 0
    assert 1 == (await admin.keys.rotate(rotate, OPERATOR)).key.secrets


async def test_what_is_absent_of_a_key_stays(ledger: Ledger, admin: AdminParts) -> None:
    created = await new_key(ledger, admin)
    soon = START + timedelta(hours=1)
    update = admin_pb2.UpdateKeyRequest(
        key_id=created.key.id,
        allowed_models=admin_pb2.AllowedModels(patterns=["local/*"]),
        expires_at=soon,
    )
    key = await admin.keys.update(update, OPERATOR)
    assert ("k", ["local/*"], soon) == (
        key.name,
        list(key.allowed_models),
        key.expires_at.ToDatetime(UTC),
    )

    await ledger.advance(timedelta(hours=1))
    assert EXPIRED == (await principal(ledger, created.secret)).state
    update = admin_pb2.UpdateKeyRequest(key_id=created.key.id, never_expires=True, local_only=True)
    key = await admin.keys.update(update, OPERATOR)

    assert (ACTIVE, True, ["local/*"]) == (key.state, key.local_only, list(key.allowed_models))
    assert ACTIVE == (await principal(ledger, created.secret)).state
    empty = admin_pb2.UpdateKeyRequest(
        key_id=created.key.id, allowed_models=admin_pb2.AllowedModels()
    )
    assert not (await admin.keys.update(empty, OPERATOR)).allowed_models


async def test_a_revoked_key_stays_revoked(ledger: Ledger, admin: AdminParts) -> None:
    created = await new_key(ledger, admin)
    request = admin_pb2.RevokeKeyRequest(key_id=created.key.id)
    first = await admin.keys.revoke(request, OPERATOR)

    assert first == await admin.keys.revoke(request, OPERATOR)
    assert quota_pb2.Principal.STATE_REVOKED == (await principal(ledger, created.secret)).state
    expected = "FAILED_PRECONDITION KEY_REVOKED"
    rotate = admin_pb2.RotateKeyRequest(key_id=created.key.id)
    update = admin_pb2.UpdateKeyRequest(key_id=created.key.id, never_expires=True)
    assert expected == await fails(admin.keys.rotate(rotate, OPERATOR))
    assert expected == await fails(admin.keys.update(update, OPERATOR))


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_hits_are_counted_where_a_limit_in_requests_lies_on_the_path(
    ledger: Ledger, admin: AdminParts, level: int
) -> None:
    created = await new_key(ledger, admin)
    account_id = (created.key.org_id, created.key.team_id, created.key.id)[level]

    async def counts() -> bool:
        return (await principal(ledger, created.secret)).counts_requests

    limit = admin_pb2.SetRateLimitRequest(
        account_id=account_id,
        unit=admin_pb2.RateLimit.UNIT_TOKENS,
        window=admin_pb2.Budget.WINDOW_MINUTE,
        limit=5,
    )
    await admin.budgets.set_rate(limit, OPERATOR)
    assert not await counts()
    limit.unit = admin_pb2.RateLimit.UNIT_REQUESTS
    made = await admin.budgets.set_rate(limit, OPERATOR)
    assert await counts()
    await admin.budgets.close_rate(admin_pb2.CloseRateLimitRequest(limit_id=made.id), OPERATOR)
    assert not await counts()


async def test_a_provider_is_in_one_pool_only(ledger: Ledger, admin: AdminParts) -> None:
    first, second, third = (f"p-{uuid7()[-12:]}" for _ in range(3))
    pool = admin_pb2.SetPoolRequest(name=first, providers=[second, third], prepaid=True)
    made = await admin.accounts.set_pool(pool, OPERATOR)
    other = admin_pb2.SetPoolRequest(name=second, providers=[third])
    before = await snapshot(ledger)

    expected = "ALREADY_EXISTS PROVIDER_IN_OTHER_POOL"
    assert expected == await fails(admin.accounts.set_pool(other, OPERATOR))
    assert before == await snapshot(ledger)

    changed = await admin.accounts.set_pool(
        admin_pb2.SetPoolRequest(name=first, providers=[second]), OPERATOR
    )
    assert (made.id, [second], False) == (changed.id, list(changed.providers), changed.prepaid)
    await admin.accounts.set_pool(other, OPERATOR)
    listed = {pool.name: list(pool.providers) for pool in (await admin.accounts.list_pools()).pools}
    assert ([second], [third]) == (listed[first], listed[second])


async def test_two_operators_who_set_a_pool_at_once_make_one(
    ledger: Ledger, admin: AdminParts
) -> None:
    name = f"p-{uuid7()[-12:]}"
    request = admin_pb2.SetPoolRequest(name=name, providers=[name])
    made = await asyncio.gather(*(admin.accounts.set_pool(request, OPERATOR) for _ in range(4)))
    assert 1 == len({pool.id for pool in made})


async def test_an_expiry_is_judged_by_the_databases_clock(
    ledger: Ledger, admin: AdminParts
) -> None:
    _, team_id, _ = await new_path(ledger)
    request = admin_pb2.CreateKeyRequest(team_id=team_id, name="k", expires_at=ledger.now)
    assert "INVALID_ARGUMENT EXPIRES_AT_PAST" == await fails(admin.keys.create(request, OPERATOR))
    request.expires_at.FromDatetime(datetime(2026, 11, 24, 12, 0, 1, tzinfo=UTC))
    assert ACTIVE == (await admin.keys.create(request, OPERATOR)).key.state
