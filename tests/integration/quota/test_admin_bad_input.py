"""Bad input of operators: each fault has its own reason, and changes nothing."""

from datetime import timedelta

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.admin_service import AdminParts
from penstock.quota.v1 import admin_pb2
from support.admin import OPERATOR, fails, new_path, snapshot, usd
from support.ledger import START, Ledger

B = admin_pb2.Budget
R = admin_pb2.RateLimit
INVALID = "INVALID_ARGUMENT "


async def test_faulty_accounts_and_pools_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    org_id, team_id, key_id = await new_path(ledger)
    accounts = await admin.accounts.list()
    org = next(account for account in accounts.accounts if account.id == org_id)
    create, update, pool = (
        admin_pb2.CreateAccountRequest,
        admin_pb2.UpdateAccountRequest,
        admin_pb2.SetPoolRequest,
    )
    before = await snapshot(ledger)
    for request, reason in [
        (create(kind=0, name="a"), INVALID + "KIND_INVALID"),
        (create(kind=3, name="a"), INVALID + "KIND_INVALID"),
        (create(kind=9, name="a"), INVALID + "KIND_INVALID"),
        (create(kind=1, name="Not Allowed"), INVALID + "NAME_INVALID"),
        (create(kind=1, name=""), INVALID + "NAME_INVALID"),
        (create(kind=1, name="a" * 65), INVALID + "NAME_INVALID"),
        (create(kind=1, name="a", org_id=org_id), INVALID + "ORG_ID_INVALID"),
        (create(kind=2, name="a", org_id=team_id), INVALID + "ORG_ID_INVALID"),
        (create(kind=1, name=org.name), "ALREADY_EXISTS ACCOUNT_NAME_TAKEN"),
        (create(kind=2, name="team", org_id=org_id), "ALREADY_EXISTS ACCOUNT_NAME_TAKEN"),
        (create(kind=2, name="t", org_id="org_99999999"), "NOT_FOUND ORG_UNKNOWN"),
    ]:
        assert reason == await fails(admin.accounts.create(request, OPERATOR)), request
    for request, reason in [
        (update(account_id=key_id, prepaid=True), INVALID + "ACCOUNT_ID_INVALID"),
        (update(account_id=org_id), INVALID + "UPDATE_EMPTY"),
        (update(account_id="team_99999999", prepaid=True), "NOT_FOUND TEAM_UNKNOWN"),
    ]:
        assert reason == await fails(admin.accounts.update(request, OPERATOR)), request
    for request, reason in [
        (pool(name="A", providers=["a"]), INVALID + "NAME_INVALID"),
        (pool(name="a"), INVALID + "PROVIDERS_INVALID"),
        (pool(name="a", providers=["a", "a"]), INVALID + "PROVIDERS_INVALID"),
        (pool(name="a", providers=[f"p{n}" for n in range(65)]), INVALID + "PROVIDERS_INVALID"),
        (pool(name="a", providers=[""]), INVALID + "PROVIDERS_INVALID"),
    ]:
        assert reason == await fails(admin.accounts.set_pool(request, OPERATOR)), request
    # A number of one kind is no other kind's.
    wrong = admin_pb2.SetSuspendedRequest(account_id=f"team_{org_id[4:]}", suspended=True)
    assert "NOT_FOUND TEAM_UNKNOWN" == await fails(admin.accounts.set_suspended(wrong, OPERATOR))
    assert before == await snapshot(ledger)


async def test_faulty_keys_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    _, team_id, key_id = await new_path(ledger)
    create, update, rotate = (
        admin_pb2.CreateKeyRequest,
        admin_pb2.UpdateKeyRequest,
        admin_pb2.RotateKeyRequest,
    )
    many = [str(n) for n in range(257)]
    before = await snapshot(ledger)
    for request, reason in [
        (create(team_id=key_id, name="k"), INVALID + "TEAM_ID_INVALID"),
        (create(team_id=team_id), INVALID + "NAME_INVALID"),
        (create(team_id=team_id, name="a\0"), INVALID + "NAME_INVALID"),
        (
            create(team_id=team_id, name="k", allowed_models=many),
            INVALID + "ALLOWED_MODELS_INVALID",
        ),
        (
            create(team_id=team_id, name="k", allowed_models=[""]),
            INVALID + "ALLOWED_MODELS_INVALID",
        ),
        (create(team_id=team_id, name="k", expires_at=START), INVALID + "EXPIRES_AT_PAST"),
        (create(team_id="team_99999999", name="k"), "NOT_FOUND TEAM_UNKNOWN"),
    ]:
        assert reason == await fails(admin.keys.create(request, OPERATOR)), request
    later = START + timedelta(days=1)
    for request, reason in [
        (update(key_id=key_id), INVALID + "UPDATE_EMPTY"),
        (update(key_id=key_id, name=""), INVALID + "NAME_INVALID"),
        (update(key_id=key_id, expires_at=START), INVALID + "EXPIRES_AT_PAST"),
        (
            update(key_id=key_id, expires_at=later, never_expires=True),
            INVALID + "EXPIRES_AT_INVALID",
        ),
        (update(key_id="key_99999999", local_only=True), "NOT_FOUND KEY_UNKNOWN"),
    ]:
        assert reason == await fails(admin.keys.update(request, OPERATOR)), request
    for request, reason in [
        (rotate(key_id="key_1x"), INVALID + "KEY_ID_INVALID"),
        (rotate(key_id=key_id, overlap_seconds=-1), INVALID + "OVERLAP_SECONDS_INVALID"),
        (rotate(key_id=key_id, overlap_seconds=2_592_001), INVALID + "OVERLAP_SECONDS_INVALID"),
        (rotate(key_id="key_99999999"), "NOT_FOUND KEY_UNKNOWN"),
    ]:
        assert reason == await fails(admin.keys.rotate(request, OPERATOR)), request
    unknown = admin_pb2.RevokeKeyRequest(key_id="key_99999999")
    assert "NOT_FOUND KEY_UNKNOWN" == await fails(admin.keys.revoke(unknown, OPERATOR))
    assert before == await snapshot(ledger)


async def test_faulty_budgets_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    _, _, key_id = await new_path(ledger)
    scope = admin_pb2.Scope
    many = [f"p{n}" for n in range(65)]
    before = await snapshot(ledger)
    cases = [
        ({"account_id": "key_x"}, INVALID + "ACCOUNT_ID_INVALID"),
        ({"account_id": "grant_1"}, INVALID + "ACCOUNT_ID_INVALID"),
        ({"account_id": "key_99999999"}, "NOT_FOUND KEY_UNKNOWN"),
        ({"account_id": "pool_99999999"}, "NOT_FOUND POOL_UNKNOWN"),
        ({"window": 0}, INVALID + "WINDOW_MISSING"),
        ({"window": 0, "name": "new"}, INVALID + "WINDOW_MISSING"),
        ({"window": 9}, INVALID + "WINDOW_INVALID"),
        ({"name": "Pocket money"}, INVALID + "NAME_INVALID"),
        ({"name": "a" * 65}, INVALID + "NAME_INVALID"),
        ({"time_zone": "Mars/Olympus"}, INVALID + "TIME_ZONE_UNKNOWN"),
        ({"time_zone": "z" * 65}, INVALID + "TIME_ZONE_INVALID"),
        ({"limit_nano_usd": -1}, INVALID + "AMOUNT_NEGATIVE"),
        ({"limit_nano_usd": None}, INVALID + "LIMIT_MISSING"),
        ({"unlimited": False}, INVALID + "LIMIT_MISSING"),
        ({"soft_percents": [0, 50]}, INVALID + "SOFT_PERCENTS_INVALID"),
        ({"soft_percents": [50, 101]}, INVALID + "SOFT_PERCENTS_INVALID"),
        ({"soft_percents": [80, 50]}, INVALID + "SOFT_PERCENTS_INVALID"),
        ({"soft_percents": [50, 50]}, INVALID + "SOFT_PERCENTS_INVALID"),
        ({"soft_percents": list(range(1, 10))}, INVALID + "SOFT_PERCENTS_INVALID"),
        ({"scope": scope(providers=many)}, INVALID + "SCOPE_PROVIDERS_INVALID"),
        ({"scope": scope(models=[""])}, INVALID + "SCOPE_MODELS_INVALID"),
        ({"scope": scope(models=["m" * 257])}, INVALID + "SCOPE_MODELS_INVALID"),
        ({"scope": scope(tags={"": "x"})}, INVALID + "SCOPE_TAGS_INVALID"),
        ({"scope": scope(tags=dict.fromkeys(many, ""))}, INVALID + "SCOPE_TAGS_INVALID"),
    ]
    for fields, reason in cases:
        request = usd(**({"account_id": key_id} | fields))
        assert reason == await fails(admin.budgets.set(request, OPERATOR)), fields
    for budget_id, reason in [
        ("limit_1", INVALID + "BUDGET_ID_INVALID"),
        ("budget_01", INVALID + "BUDGET_ID_INVALID"),
        ("budget_99999999", "NOT_FOUND BUDGET_UNKNOWN"),
    ]:
        close = admin_pb2.CloseBudgetRequest(budget_id=budget_id)
        assert reason == await fails(admin.budgets.close(close, OPERATOR))
    unknown = admin_pb2.ListBudgetsRequest(account_id="team_99999999")
    assert "NOT_FOUND TEAM_UNKNOWN" == await fails(admin.budgets.list(unknown))
    assert before == await snapshot(ledger)


async def test_faulty_limits_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    _, _, key_id = await new_path(ledger)
    before = await snapshot(ledger)
    base = {
        "account_id": key_id,
        "unit": R.UNIT_REQUESTS,
        "window": B.WINDOW_MINUTE,
        "limit": 1,
    }
    cases = [
        ({"unit": 0}, INVALID + "UNIT_INVALID"),
        ({"unit": 9}, INVALID + "UNIT_INVALID"),
        ({"window": 0}, INVALID + "WINDOW_MISSING"),
        ({"window": B.WINDOW_TOTAL}, INVALID + "WINDOW_INVALID"),
        ({"window": 9}, INVALID + "WINDOW_INVALID"),
        ({"unit": R.UNIT_IN_FLIGHT}, INVALID + "WINDOW_INVALID"),
        ({"limit": -1}, INVALID + "LIMIT_INVALID"),
        ({"limit": 10**15 + 1}, INVALID + "LIMIT_INVALID"),
        ({"name": "a b"}, INVALID + "NAME_INVALID"),
        ({"time_zone": "Nowhere"}, INVALID + "TIME_ZONE_UNKNOWN"),
        ({"account_id": "key_99999999"}, "NOT_FOUND KEY_UNKNOWN"),
    ]
    for fields, reason in cases:
        request = admin_pb2.SetRateLimitRequest(**(base | fields))
        assert reason == await fails(admin.budgets.set_rate(request, OPERATOR)), fields
    close = admin_pb2.CloseRateLimitRequest(limit_id="budget_1")
    assert INVALID + "LIMIT_ID_INVALID" == await fails(admin.budgets.close_rate(close, OPERATOR))
    assert before == await snapshot(ledger)


async def test_every_fault_is_told_at_once(admin: AdminParts) -> None:
    request = admin_pb2.CreateGrantRequest(account_id="x", amount_nano_usd=-1, grant_key=uuid7())
    with pytest.raises(errors.InvalidRequest) as raised:
        await admin.grants.create(request, OPERATOR)
    fields = [violation.field for violation in raised.value.violations]
    assert ["account_id", "amount_nano_usd", "name"] == fields
