"""Grants as operators make and end them: LEDGER, I11."""

import asyncio
from datetime import timedelta

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.admin_service import AdminParts
from penstock.quota.store import grant_store
from penstock.quota.v1 import admin_pb2
from support.admin import OPERATOR, TRY, fails, snapshot
from support.ledger import START, Ledger, reserve, settle, told


def credit(account_id: str, amount: int = 100, **fields: object) -> admin_pb2.CreateGrantRequest:
    defaults: dict[str, object] = {"grant_key": uuid7(), "name": "credit", "commercial_use": True}
    return admin_pb2.CreateGrantRequest(
        account_id=account_id,
        amount_nano_usd=amount,
        **(defaults | fields),
    )


async def spender(ledger: Ledger) -> tuple[int, str]:
    """A key with an unlimited budget; as a number, as text."""
    key_id = await ledger.new_key(None)
    return key_id, f"key_{key_id}"


async def test_a_grant_is_made_once_whoever_repeats_it(ledger: Ledger, admin: AdminParts) -> None:
    number, key_id = await spender(ledger)
    request = credit(key_id, reason="welcome", scope=admin_pb2.Scope(models=["gpt_4*"]))

    made = await asyncio.gather(*(admin.grants.create(request, OPERATOR) for _ in range(4)))
    await ledger.advance(timedelta(days=1))
    again, is_repeat = await admin.grants.create(request, OPERATOR)

    assert [again] * 4 == [grant for grant, _ in made]
    assert [False, *[True] * 3] == sorted(was_repeat for _, was_repeat in made)
    assert is_repeat
    assert (100, "welcome", ["gpt_4*"], False) == (
        again.amount_nano_usd,
        again.reason,
        list(again.scope.models),
        again.HasField("expires_at"),
    )
    (entry,) = await ledger.entries_of("grant", number)
    assert ("ops@example.org", "ticket 7") == (entry["actor"], entry["reason"])
    listed = await admin.grants.list(admin_pb2.ListGrantsRequest(account_id=key_id))
    assert [again] == list(listed.grants)


async def test_an_account_has_so_many_open_grants_and_no_more(
    ledger: Ledger, admin: AdminParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_store, "OPEN_GRANTS_MAX", 2)
    _, key_id = await spender(ledger)
    first, second = [(await admin.grants.create(credit(key_id), OPERATOR))[0] for _ in range(2)]
    before = await snapshot(ledger)

    assert "FAILED_PRECONDITION GRANTS_TOO_MANY" == await fails(
        admin.grants.create(credit(key_id), OPERATOR)
    )
    assert before == await snapshot(ledger)
    await admin.grants.end(admin_pb2.EndGrantRequest(grant_id=second.id), OPERATOR)
    third, _ = await admin.grants.create(credit(key_id), OPERATOR)
    assert third.id not in (first.id, second.id)


async def test_a_grant_key_is_of_one_grant(ledger: Ledger, admin: AdminParts) -> None:
    _, key_id = await spender(ledger)
    _, other_id = await spender(ledger)
    request = credit(key_id)
    await admin.grants.create(request, OPERATOR)
    before = await snapshot(ledger)

    changes: list[dict[str, object]] = [
        {"account_id": other_id},
        {"amount_nano_usd": 101},
        {"name": "other"},
        {"reason": "other"},
        {"commercial_use": False},
        {"scope": admin_pb2.Scope(providers=["openai"])},
        {"starts_at": START},
        {"expires_at": START + timedelta(days=1)},
    ]
    for change in changes:
        other = admin_pb2.CreateGrantRequest()
        other.CopyFrom(request)
        other.MergeFrom(admin_pb2.CreateGrantRequest(**change))
        if "commercial_use" in change:
            other.commercial_use = False
        with pytest.raises(errors.Conflict) as refused:
            await admin.grants.create(other, OPERATOR)
        assert "GRANT_KEY_REUSED" == refused.value.reason
        (field,) = change
        field = "scope.providers" if field == "scope" else field
        (violation,) = refused.value.violations
        assert field == violation.field == refused.value.metadata["fields"]
        assert violation.description.startswith("was ")
    assert before == await snapshot(ledger)


async def test_a_dry_run_makes_no_grant(ledger: Ledger, admin: AdminParts) -> None:
    _, key_id = await spender(ledger)
    before = await snapshot(ledger)
    request = credit(key_id)

    tried, _ = await admin.grants.create(request, TRY)
    assert before == await snapshot(ledger)
    made, is_repeat = await admin.grants.create(request, OPERATOR)
    assert (100, 100, False) == (tried.amount_nano_usd, made.amount_nano_usd, is_repeat)


async def test_an_ended_grant_lapses_and_so_does_what_comes_back_to_it(
    ledger: Ledger, admin: AdminParts
) -> None:
    number, key_id = await spender(ledger)
    grant, _ = await admin.grants.create(credit(key_id), OPERATOR)
    grant_number = int(grant.id.split("_")[1])
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, number, 40)))

    end = admin_pb2.EndGrantRequest(grant_id=grant.id)
    tried = await admin.grants.end(end, TRY)
    assert (0, 40, 0, 0) == await ledger.credit(grant_number)
    ended = await admin.grants.end(end, OPERATOR)

    assert (60, 40, 60) == (ended.lapsed_nano_usd, ended.held_nano_usd, tried.lapsed_nano_usd)
    assert START == ended.expires_at.ToDatetime(START.tzinfo)
    assert ended == await admin.grants.end(end, OPERATOR)
    (lapse,) = await ledger.entries_of("lapse", number)
    assert (([60], [0]), "ops@example.org") == (
        (lapse["slice_lapsed"], lapse["slice_held"]),
        lapse["actor"],
    )
    # Of no use to anybody from now on, but the hold settles where it lies.
    second = ledger.id()
    assert "ok" == told(await ledger.one(reserve(second, number, 10)))
    assert "ok" == told(await ledger.one(settle(id_, 25)))
    assert (25, 0, 0, 60) == await ledger.credit(grant_number)
    again = await admin.grants.end(end, OPERATOR)
    assert (25, 0, 75) == (again.posted_nano_usd, again.held_nano_usd, again.lapsed_nano_usd)
    assert [[15], [60]] == [e["slice_lapsed"] for e in await ledger.entries_of("lapse", number)]


async def test_a_grant_that_has_not_begun_ends_all_the_same(
    ledger: Ledger, admin: AdminParts
) -> None:
    number, key_id = await spender(ledger)
    request = credit(key_id, starts_at=START + timedelta(days=1))
    grant, _ = await admin.grants.create(request, OPERATOR)
    ended = await admin.grants.end(admin_pb2.EndGrantRequest(grant_id=grant.id), OPERATOR)

    assert 100 == ended.lapsed_nano_usd
    await ledger.advance(timedelta(days=2))
    assert "ok" == told(await ledger.one(reserve(ledger.id(), number, 10)))
    assert (0, 0, 0, 100) == await ledger.credit(int(grant.id.split("_")[1]))
    # Its key is still its own: a repeat makes no second one.
    again, is_repeat = await admin.grants.create(request, OPERATOR)
    assert (grant.id, True) == (again.id, is_repeat)


async def test_a_grant_that_ends_among_attempts_is_used_or_lapsed_to_the_nano(
    ledger: Ledger, admin: AdminParts
) -> None:
    number, key_id = await spender(ledger)
    grant, _ = await admin.grants.create(credit(key_id, 1000), OPERATOR)
    end = admin_pb2.EndGrantRequest(grant_id=grant.id)

    async def attempt(used: int) -> None:
        id_ = ledger.id()
        assert "ok" == told(await ledger.one(reserve(id_, number, 10)))
        assert "ok" == told(await ledger.one(settle(id_, used)))

    await asyncio.gather(
        *(attempt(n % 11) for n in range(30)),
        *(admin.grants.end(end, OPERATOR) for _ in range(3)),
    )

    ended = await admin.grants.end(end, OPERATOR)
    assert 0 == ended.held_nano_usd
    assert 1000 == ended.posted_nano_usd + ended.lapsed_nano_usd
    assert (sum(n % 11 for n in range(30)), 0, 0) == await ledger.balances("key", number)


async def test_faulty_grants_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    _, key_id = await spender(ledger)
    before = await snapshot(ledger)
    past = START - timedelta(days=1)
    cases = [
        (credit(key_id, 0), "INVALID_ARGUMENT AMOUNT_ZERO"),
        (credit(key_id, -1), "INVALID_ARGUMENT AMOUNT_NEGATIVE"),
        (credit(key_id, 10**15 + 1), "INVALID_ARGUMENT AMOUNT_TOO_LARGE"),
        (credit(key_id, grant_key=""), "INVALID_ARGUMENT GRANT_KEY_INVALID"),
        (credit(key_id, grant_key="x" * 129), "INVALID_ARGUMENT GRANT_KEY_INVALID"),
        (credit(key_id, name=""), "INVALID_ARGUMENT NAME_INVALID"),
        (credit("budget_1"), "INVALID_ARGUMENT ACCOUNT_ID_INVALID"),
        (credit("pool_99999999"), "NOT_FOUND POOL_UNKNOWN"),
        (
            credit(key_id, starts_at=START, expires_at=START),
            "INVALID_ARGUMENT GRANT_ENDS_BEFORE_START",
        ),
        (credit(key_id, expires_at=past), "INVALID_ARGUMENT GRANT_ENDS_BEFORE_START"),
        (
            credit(key_id, starts_at=past, expires_at=START - timedelta(hours=1)),
            "INVALID_ARGUMENT EXPIRES_AT_PAST",
        ),
    ]
    for request, reason in cases:
        assert reason == await fails(admin.grants.create(request, OPERATOR)), request
    unknown = admin_pb2.EndGrantRequest(grant_id="grant_99999999")
    assert "NOT_FOUND GRANT_UNKNOWN" == await fails(admin.grants.end(unknown, OPERATOR))
    malformed = admin_pb2.EndGrantRequest(grant_id="budget_1")
    assert "INVALID_ARGUMENT GRANT_ID_INVALID" == await fails(admin.grants.end(malformed, OPERATOR))
    assert before == await snapshot(ledger)
