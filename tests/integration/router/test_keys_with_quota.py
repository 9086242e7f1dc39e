"""Keys against the real quota service over a real PostgreSQL: known, revoked, and outages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.clock import SystemClock
from penstock.core.errors import Unauthenticated, Unavailable
from penstock.quota.v1 import admin_pb2
from penstock.router.principal import BELIEVED_SECONDS, Principals
from support.quota_process import ADMIN, SERVICE, QuotaProcess, quota_process


@pytest.fixture
async def quota(ledger_dsn: str, tmp_path: Path) -> AsyncIterator[QuotaProcess]:
    async with quota_process(ledger_dsn, tmp_path) as running:
        yield running


async def refused_after(principals: Principals, headers: dict[str, str]) -> tuple[str, float]:
    """Asks as a busy client does, until the key is refused: the reason, and the seconds it took."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with asyncio.timeout(10):
        while True:
            try:
                await principals.of(headers)
            except Unauthenticated as error:
                return error.reason, loop.time() - before
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("watching", [True, False])
async def test_revoked_key_is_refused_within_two_seconds(
    quota: QuotaProcess, watching: bool
) -> None:
    key = await quota.new_key(None, name="watched" if watching else "unwatched")
    headers = {"authorization": f"Bearer {key.secret}"}
    principals = Principals(quota.channel, SERVICE, SystemClock())
    watch = asyncio.create_task(principals.watch()) if watching else None
    if watching:
        async with asyncio.timeout(10):
            await principals.heard.wait()
    assert key.key.id == (await principals.of(headers)).key_id
    await quota.admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=key.key.id), metadata=ADMIN)
    reason, taken_seconds = await refused_after(principals, headers)
    assert "KEY_REVOKED" == reason
    # The watch tells at once; without it the promise still holds.
    assert taken_seconds < (1.0 if watching else BELIEVED_SECONDS + 0.5)
    if watch is not None:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_unknown_key_is_unknown_and_an_outage_is_not_called_so(quota: QuotaProcess) -> None:
    principals = Principals(quota.channel, SERVICE, SystemClock())
    stranger = {"authorization": "Bearer ps-nobody"}
    with pytest.raises(Unauthenticated) as caught:
        await principals.of(stranger)
    assert "KEY_UNKNOWN" == caught.value.reason
    quota.process.kill()
    await quota.process.wait()
    with pytest.raises(Unavailable) as away:
        await principals.of({"authorization": "Bearer ps-somebody"})
    assert "LEDGER_UNAVAILABLE" == away.value.reason
