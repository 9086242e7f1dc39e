"""Both ports as their callers see them: keys, watching, streams, tokens, drain."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from penstock.core.status import from_rpc_error
from penstock.quota.account import secret_hash
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.quota_process import (
    ADMIN,
    SERVICE,
    QuotaProcess,
    new_name,
    one_nano,
    quota_process,
    reason_of,
)


async def test_a_key_is_shown_once_and_known_by_its_hash(quota: QuotaProcess) -> None:
    created = await quota.new_key(100, name=new_name())
    secret = created.secret
    assert secret.startswith("ps-")
    assert len(secret) >= 3 + 160 / 6
    assert secret.startswith(created.key.prefix)
    assert created.key.prefix != secret

    request = quota_pb2.GetPrincipalRequest(key_hash=secret_hash(secret))
    principal = await quota.quota.GetPrincipal(request, metadata=SERVICE)

    assert created.key.id == principal.key_id
    assert quota_pb2.Principal.STATE_ACTIVE == principal.state
    listed = await quota.admin.ListKeys(
        admin_pb2.ListKeysRequest(team_id=created.key.team_id), metadata=ADMIN
    )
    assert [created.key] == list(listed.keys)
    assert secret not in str(listed)


async def test_a_repeat_is_told_from_what_it_repeats(quota: QuotaProcess) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    adjust = admin_pb2.AdjustRequest(
        account_id=key_id, amount_nano_usd=5, adjustment_key=new_name()
    )
    grant = admin_pb2.CreateGrantRequest(
        account_id=key_id, amount_nano_usd=5, grant_key=new_name(), name="credit"
    )
    for method, request in ((quota.admin.Adjust, adjust), (quota.admin.CreateGrant, grant)):
        first = method(request, metadata=ADMIN)
        made = await first
        again = method(request, metadata=ADMIN)
        assert made == await again
        told = [
            (await call.trailing_metadata()).get("x-penstock-replayed") for call in (first, again)
        ]
        assert [None, "true"] == told


async def test_a_keys_policy_is_told(quota: QuotaProcess) -> None:
    created = await quota.new_key(100, name=new_name())
    expires_at = datetime(2030, 1, 1, tzinfo=UTC)
    request = admin_pb2.CreateKeyRequest(
        team_id=created.key.team_id,
        name="strict",
        allowed_models=["local/*", "openai/gpt-4o-mini"],
        local_only=True,
        fail_open_local=True,
        expires_at=expires_at,
    )
    strict = await quota.admin.CreateKey(request, metadata=ADMIN)

    principal = await quota.quota.GetPrincipal(
        quota_pb2.GetPrincipalRequest(key_hash=secret_hash(strict.secret)), metadata=SERVICE
    )

    assert ["local/*", "openai/gpt-4o-mini"] == list(principal.allowed_models)
    assert (True, True) == (principal.local_only, principal.fail_open_local)
    assert expires_at == principal.expires_at.ToDatetime(UTC)


async def test_revocation_and_suspension_are_heard_within_two_seconds_by_every_process(
    quota: QuotaProcess, module_dsn: str, tmp_path: Path
) -> None:
    created = await quota.new_key(100, name=new_name())
    async with quota_process(module_dsn, tmp_path) as other:
        watch = other.quota.WatchKeys(quota_pb2.WatchKeysRequest(), metadata=SERVICE)
        assert not (await watch.read()).changed_key_hashes

        async def heard() -> list[bytes]:
            async with asyncio.timeout(2):
                while not (changed := (await watch.read()).changed_key_hashes):
                    pass
                return list(changed)

        request = quota_pb2.GetPrincipalRequest(key_hash=secret_hash(created.secret))
        for change, state in [
            (_suspend(quota, created.key.team_id, suspended=True), "STATE_SUSPENDED"),
            (_suspend(quota, created.key.team_id, suspended=False), "STATE_ACTIVE"),
            (_suspend(quota, created.key.org_id, suspended=True), "STATE_SUSPENDED"),
            (_revoke(quota, created.key.id), "STATE_REVOKED"),
        ]:
            await change
            assert [secret_hash(created.secret)] == await heard()
            principal = await other.quota.GetPrincipal(request, metadata=SERVICE)
            assert state == quota_pb2.Principal.State.Name(principal.state)
        watch.cancel()


async def _suspend(quota: QuotaProcess, account_id: str, *, suspended: bool) -> None:
    request = admin_pb2.SetSuspendedRequest(account_id=account_id, suspended=suspended)
    await quota.admin.SetSuspended(request, metadata=ADMIN)


async def _revoke(quota: QuotaProcess, key_id: str) -> None:
    await quota.admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=key_id), metadata=ADMIN)


async def test_a_watcher_gets_a_sign_of_life_each_second(quota: QuotaProcess) -> None:
    watch = quota.quota.WatchKeys(quota_pb2.WatchKeysRequest(), metadata=SERVICE)
    for _ in range(3):
        async with asyncio.timeout(1):
            assert not (await watch.read()).changed_key_hashes
    watch.cancel()


async def test_neither_port_takes_the_others_token(quota: QuotaProcess) -> None:
    principal = quota_pb2.GetPrincipalRequest(key_hash=bytes(32))
    accounts = admin_pb2.ListAccountsRequest()
    expected = "UNAUTHENTICATED SERVICE_TOKEN_INVALID"
    assert expected == await reason_of(quota.quota.GetPrincipal(principal, metadata=ADMIN))
    assert expected == await reason_of(quota.quota.GetPrincipal(principal))
    assert expected == await reason_of(quota.admin.ListAccounts(accounts, metadata=SERVICE))
    assert expected == await reason_of(quota.admin.ListAccounts(accounts))


async def test_a_refusal_names_the_budget_and_its_reset(quota: QuotaProcess) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    request = admin_pb2.SetBudgetRequest(
        account_id=key_id,
        window=admin_pb2.Budget.WINDOW_MONTH,
        name="pocket-money",
        time_zone="Europe/Berlin",
        limit_nano_usd=0,
    )
    budget = await quota.admin.SetBudget(request, metadata=ADMIN)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quota.quota.Reserve(one_nano(key_id), metadata=SERVICE)

    told = from_rpc_error(raised.value)
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED") == (
        raised.value.code(),
        told.reason,
    )
    reset = f"{budget.resets_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    assert ("pocket-money", reset) == (told.metadata["budget_name"], told.metadata["resets_at"])
    assert "pocket-money" in told.message
    assert reset in told.message


async def test_a_stream_answers_each_operation_and_outlives_faulty_ones(
    quota: QuotaProcess,
) -> None:
    key_id = (await quota.new_key(10, name=new_name())).key.id
    good, poor = one_nano(key_id), one_nano(key_id, provider="azure")
    poor.amount_nano_usd = 11
    settle = quota_pb2.SettleRequest(
        reservation_id=good.reservation_id, amount_nano_usd=1, key_id=key_id
    )
    operations = [
        quota_pb2.Operation(operation_id=1, reserve=good),
        quota_pb2.Operation(operation_id=2, reserve=poor),
        quota_pb2.Operation(operation_id=3, settle=settle),
        quota_pb2.Operation(operation_id=4),
        quota_pb2.Operation(operation_id=5, reserve=one_nano("nonsense")),
        quota_pb2.Operation(operation_id=6, reserve=one_nano(key_id), deadline_ms=-1),
        quota_pb2.Operation(
            operation_id=7,
            void=quota_pb2.VoidRequest(reservation_id=good.reservation_id, key_id=key_id),
        ),
    ]
    call = quota.quota.Batch(metadata=SERVICE)
    await call.write(quota_pb2.BatchRequest(operations=operations))
    too_many = [quota_pb2.Operation(operation_id=100 + n, settle=settle) for n in range(1025)]
    await call.write(quota_pb2.BatchRequest(operations=too_many))
    await call.done_writing()

    results = {r.operation_id: r async for response in call for r in response.results}

    assert good.reservation_id == results[1].reserve.reservation_id
    assert ("BUDGET_EXCEEDED", 10) == (
        results[2].error.reason,
        results[2].error.refusal.limit_nano_usd,
    )
    assert results[3].settle.posted_nano_usd == 1
    reasons = {n: results[n].error.reason for n in (4, 5, 6, 7, 100, 1124)}
    assert reasons == {
        4: "OPERATION_MISSING",
        5: "KEY_ID_INVALID",
        6: "DEADLINE_INVALID",
        7: "RESERVATION_SETTLED",
        100: "BATCH_TOO_LARGE",
        1124: "BATCH_TOO_LARGE",
    }
    assert len(results) == 7 + 1025
    assert await quota.balances(key_id) == (1, 0, 0)


async def test_sigterm_answers_what_was_taken_ends_the_streams_and_exits_cleanly(
    module_dsn: str, tmp_path: Path
) -> None:
    async with quota_process(module_dsn, tmp_path) as quota:
        key_id = (await quota.new_key(10**6, name=new_name())).key.id
        watch = quota.quota.WatchKeys(quota_pb2.WatchKeysRequest(), metadata=SERVICE)
        await watch.read()
        call = quota.quota.Batch(metadata=SERVICE)
        operations = [
            quota_pb2.Operation(operation_id=n, reserve=one_nano(key_id)) for n in range(200)
        ]
        await call.write(quota_pb2.BatchRequest(operations=operations))
        answered = len((await call.read()).results)

        quota.process.terminate()

        while (response := await call.read()) is not grpc.aio.EOF:
            answered += len(response.results)
        assert answered == 200
        assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(5):
            assert await quota.process.wait() == 0


async def test_a_watched_balance_follows_and_ends_with_the_process(
    module_dsn: str, tmp_path: Path
) -> None:
    async with quota_process(module_dsn, tmp_path) as quota:
        key_id = (await quota.new_key(100, name=new_name())).key.id
        request = quota_pb2.WatchBalanceRequest(account_id=key_id, interval_ms=100)
        watch = quota.quota.WatchBalance(request, metadata=SERVICE)
        slow = quota.quota.WatchBalance(
            quota_pb2.WatchBalanceRequest(account_id=key_id, interval_ms=60_000), metadata=SERVICE
        )
        first = await watch.read()
        assert 100 == first.budgets[0].remaining_nano_usd
        assert first.budgets == (await slow.read()).budgets

        await quota.quota.Reserve(one_nano(key_id), metadata=SERVICE)
        assert 99 == (await watch.read()).budgets[0].remaining_nano_usd
        balance = await quota.quota.GetBalance(
            quota_pb2.GetBalanceRequest(account_id=key_id), metadata=SERVICE
        )
        assert 99 == balance.budgets[0].remaining_nano_usd

        quota.process.terminate()
        async with asyncio.timeout(5):
            assert grpc.aio.EOF is await watch.read()
            assert grpc.aio.EOF is await slow.read()
            assert 0 == await quota.process.wait()


async def test_entries_and_usage_agree_to_the_nano(quota: QuotaProcess) -> None:
    key = (await quota.new_key(10**9, name=new_name())).key
    costs = [17, 0, 123_456_789]
    for n, cost in enumerate(costs, 1):
        request = one_nano(key.id, request_id=f"req-{key.id}", attempt=n)
        request.amount_nano_usd = 200_000_000
        await quota.quota.Reserve(request, metadata=SERVICE)
        settle = quota_pb2.SettleRequest(
            reservation_id=request.reservation_id,
            amount_nano_usd=cost,
            usage={"prompt_tokens": 10, "completion_tokens": n, "estimated": n == 1},
            outcome="ok",
            trace_id="abc",
            key_id=key.id,
        )
        await quota.quota.Settle(settle, metadata=SERVICE)

    usage = await quota.admin.GetUsage(
        admin_pb2.GetUsageRequest(account_id=key.org_id), metadata=ADMIN
    )
    (row,) = usage.rows
    assert (3, 30, 6, sum(costs), 17) == (
        row.attempts,
        row.prompt_tokens,
        row.completion_tokens,
        row.posted_nano_usd,
        row.estimated_nano_usd,
    )
    entries, token = [], ""
    while True:
        page = await quota.admin.ListEntries(
            quota_pb2.ListEntriesRequest(request_id=f"req-{key.id}", page_size=4, page_token=token),
            metadata=ADMIN,
        )
        entries += page.entries
        token = page.next_page_token
        if not token:
            break
    assert ["settle", "reserve"] * 3 == [entry.operation for entry in entries]
    assert sum(costs) == sum(entry.posted_nano_usd for entry in entries)
    assert 0 == sum(entry.held_delta_nano_usd for entry in entries)
    assert [3, 0, 2, 0, 1, 0] == [entry.completion_tokens for entry in entries]
    since = datetime.now(UTC) + timedelta(hours=1)
    later = await quota.admin.GetUsage(
        admin_pb2.GetUsageRequest(account_id=key.id, since=since), metadata=ADMIN
    )
    assert not later.rows


async def test_an_operator_resolves_what_is_in_suspense(quota: QuotaProcess) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    abandoned = one_nano(key_id, ttl_ms=1)
    abandoned.amount_nano_usd = 60
    await quota.quota.Reserve(abandoned, metadata=SERVICE)
    await quota.quota.Reserve(one_nano(key_id), metadata=SERVICE)  # meets the expired one
    assert await quota.balances(key_id) == (0, 1, 60)

    request = quota_pb2.SettleRequest(
        reservation_id=abandoned.reservation_id, amount_nano_usd=20, outcome="OPERATOR"
    )
    resolved = await quota.admin.ResolveSuspense(request, metadata=ADMIN)

    assert (20, 40, True) == (resolved.posted_nano_usd, resolved.released_nano_usd, resolved.late)
    assert await quota.balances(key_id) == (20, 1, 0)
