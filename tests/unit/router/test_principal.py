import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock.core.errors import PenstockError, PermissionDenied, Unauthenticated, Unavailable
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router import principal as principals
from penstock.router.principal import BELIEVED_SECONDS, Principals
from support.quota_server import KEY, METADATA, FakeQuota, digest
from support.wait import until


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic_seconds(self) -> float:
        return self.now

    def unix_seconds(self) -> float:
        return self.now


class House:
    def __init__(self) -> None:
        self.quota = FakeQuota()
        self.clock = Clock()

    async def of(self, key: str = KEY) -> Principal:
        return await self.principals.of({"authorization": f"Bearer {key}"})

    async def error(self, key: str = KEY) -> PenstockError:
        with pytest.raises(PenstockError) as caught:
            await self.of(key)
        return caught.value

    async def reason(self, key: str = KEY) -> str:
        return (await self.error(key)).reason

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.principals.watch())
        try:
            async with asyncio.timeout(5):
                await self.principals.heard.wait()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def beat(self) -> None:
        """A sign of life, and the router has heard it."""
        self.principals._heard_at = float("-inf")
        self.quota.beat()
        await until(lambda: self.principals._heard_at == self.clock.now)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    found = House()
    found.quota.put()
    await found.quota.start()
    channel = found.quota.channel()
    found.principals = Principals(channel, METADATA, found.clock)
    yield found
    await channel.close()
    await found.quota.stop()


async def test_known_key_costs_no_rpc_while_the_watch_lives(house: House) -> None:
    async with house.watching():
        for _ in range(10):
            assert "key-1" == (await house.of()).key_id
            house.clock.now += 1
            await house.beat()
    assert [digest(KEY)] == house.quota.asked


async def test_only_the_hash_of_the_key_leaves_the_router(house: House) -> None:
    await house.of()
    assert [digest(KEY)] == house.quota.asked


async def test_revoked_key_is_refused_as_soon_as_the_watch_says_so(house: House) -> None:
    async with house.watching():
        await house.of()
        house.quota.put(state=Principal.STATE_REVOKED)
        house.quota.tell(KEY)
        await until(lambda: digest(KEY) not in house.principals._known)
        assert "KEY_REVOKED" == await house.reason()
        assert "KEY_REVOKED" == await house.reason()
    assert 2 == len(house.quota.asked)


async def test_key_is_asked_again_after_two_seconds_of_silence(house: House) -> None:
    async with house.watching():
        await house.of()
        house.quota.put(state=Principal.STATE_REVOKED)
        house.clock.now += BELIEVED_SECONDS - 0.1
        await house.of()
        house.clock.now += 0.2
        assert "KEY_REVOKED" == await house.reason()


async def test_without_a_watch_a_key_is_believed_for_two_seconds(house: House) -> None:
    await house.of()
    house.clock.now += BELIEVED_SECONDS - 0.1
    await house.of()
    assert 1 == len(house.quota.asked)
    house.clock.now += 0.2
    await house.of()
    assert 2 == len(house.quota.asked)


async def test_changes_while_the_watch_was_broken_are_not_missed(house: House) -> None:
    async with house.watching():
        await house.of()
        house.quota.watched.clear()
        house.quota.end_watches()
        house.quota.put(state=Principal.STATE_REVOKED)
        epoch = house.principals._epoch
        await until(lambda: house.principals._epoch > epoch)
        house.clock.now += BELIEVED_SECONDS + 0.1
        await house.beat()
        assert "KEY_REVOKED" == await house.reason()


async def test_key_that_changes_while_it_is_asked_for_is_asked_again(house: House) -> None:
    async with house.watching():
        house.quota.gate.clear()
        first = asyncio.create_task(house.reason())
        await until(lambda: len(house.quota.asked) == 1)
        house.quota.put(state=Principal.STATE_REVOKED)
        house.quota.tell(KEY)
        await until(lambda: house.principals._asking[digest(KEY)].changed)
        house.quota.gate.set()
        assert "KEY_REVOKED" == await first


async def test_many_callers_of_one_key_share_one_question(house: House) -> None:
    house.quota.gate.clear()
    callers = [asyncio.create_task(house.of()) for _ in range(20)]
    await until(lambda: len(house.quota.asked) == 1)
    callers[0].cancel()
    house.quota.gate.set()
    found = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert ["key-1"] * 19 == [p.key_id for p in found[1:]]
    assert 1 == len(house.quota.asked)


@pytest.mark.parametrize(
    ("state", "kind", "reason"),
    [
        (Principal.STATE_REVOKED, Unauthenticated, "KEY_REVOKED"),
        (Principal.STATE_EXPIRED, Unauthenticated, "KEY_EXPIRED"),
        (Principal.STATE_SUSPENDED, PermissionDenied, "ACCOUNT_SUSPENDED"),
        (Principal.STATE_UNSPECIFIED, Unauthenticated, "KEY_UNKNOWN"),
    ],
)
async def test_keys_that_are_not_active_say_why(
    house: House, state: Principal.State, kind: type[PenstockError], reason: str
) -> None:
    house.quota.put(state=state)
    error = await house.error()
    assert (kind, reason) == (type(error), error.reason)


async def test_key_expires_by_our_own_clock(house: House) -> None:
    active = house.quota.put()
    active.expires_at.FromSeconds(int(house.clock.now) + 10)
    async with house.watching():
        await house.of()
        house.clock.now += 10
        await house.beat()
        assert "KEY_EXPIRED" == await house.reason()
    assert 1 == len(house.quota.asked)


async def test_unknown_key_is_remembered_shortly(house: House) -> None:
    assert "KEY_UNKNOWN" == await house.reason("ps-new")
    assert "KEY_UNKNOWN" == await house.reason("ps-new")
    assert 1 == len(house.quota.asked)
    house.quota.put("ps-new", key_id="key-2")
    house.clock.now += principals.UNKNOWN_BELIEVED_SECONDS + 0.1
    assert "key-2" == (await house.of("ps-new")).key_id


async def test_scanner_cannot_push_out_known_keys_or_fill_memory(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "UNKNOWN_MAX", 10)
    async with house.watching():
        await house.of()
        for index in range(30):
            assert "KEY_UNKNOWN" == await house.reason(f"ps-guess-{index}")
        assert 10 == len(house.principals._unknown)
        asked = len(house.quota.asked)
        await house.of()
        assert asked == len(house.quota.asked)


async def test_least_recently_used_principal_goes_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "PRINCIPALS_MAX", 2)
    for key in ("ps-a", "ps-b"):
        house.quota.put(key)
        await house.of(key)
    await house.of("ps-a")
    await house.of()
    assert [digest("ps-a"), digest(KEY)] == list(house.principals._known)


async def test_unknown_key_while_the_ledger_is_away_is_not_called_invalid(house: House) -> None:
    await house.quota.stop()
    with pytest.raises(Unavailable) as caught:
        await house.of()
    assert "LEDGER_UNAVAILABLE" == caught.value.reason
    assert caught.value.retry_after_seconds is not None
    await house.quota.start()
    async with asyncio.timeout(5):
        while True:
            try:
                assert "key-1" == (await house.of()).key_id
                break
            except Unavailable:
                await asyncio.sleep(0.05)


async def test_only_fail_open_keys_go_on_while_the_ledger_is_away(house: House) -> None:
    house.quota.put("ps-open", key_id="open", fail_open_local=True)
    await house.of("ps-open")
    await house.of()
    await house.quota.stop()
    house.clock.now += BELIEVED_SECONDS + 0.1
    assert "open" == (await house.of("ps-open")).key_id
    with pytest.raises(Unavailable):
        await house.of()
    house.clock.now += principals.FAIL_OPEN_SECONDS_MAX
    with pytest.raises(Unavailable):
        await house.of("ps-open")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "KEY_MISSING"),
        ({"authorization": "Bearer "}, "KEY_MISSING"),
        ({"authorization": "Basic cHM="}, "KEY_MISSING"),
        ({"authorization": "Bearer sk-abc"}, "KEY_UNKNOWN"),
        ({"authorization": "Bearer ps-" + "a" * 300}, "KEY_UNKNOWN"),
        ({"authorization": "Bearer ps-é"}, "KEY_UNKNOWN"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_without_asking(
    house: House, headers: dict[str, str], reason: str
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await house.principals.of(headers)
    assert reason == caught.value.reason
    assert [] == house.quota.asked


async def test_both_headers_are_taken(house: House) -> None:
    assert "key-1" == (await house.principals.of({"x-api-key": KEY})).key_id
    assert "key-1" == (await house.principals.of({"authorization": f"bearer {KEY}"})).key_id
