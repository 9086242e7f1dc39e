"""Both fronts over the real quota and cache services: what answers, what it costs, and that no bad
input leaves anything held.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.core.errors import InvalidRequest
from penstock.core.postgres_server import PrivateServer
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import GetPrincipalRequest, Principal
from penstock.router.backends.base import AttemptFailed, Billing
from penstock.router.v1.router_pb2 import CacheControl, GenerateRequest
from support import bad_bodies, bad_requests
from support.bad_bodies import CHAT, body
from support.cache import waiting_in
from support.chat import chat
from support.fronts import FrontHouse, RpcError, metadata
from support.ports import ScriptedBackend, text_answer
from support.postgres import postgres_server
from support.quota_process import ADMIN, SERVICE
from support.services import Services, fetch, services
from support.wait import until

__all__ = ["postgres_server"]

COST = 10 * 1_000 + 3 * 2_000
PLENTY = 10**9
LOCAL = "local/small"
TOO_LONG = AttemptFailed(
    InvalidRequest("the prompt is too long", reason="CONTEXT_LENGTH_EXCEEDED"),
    billing=Billing.NOTHING,
    fall_back=False,
)

Told = dict[str, str]
"""The `x-penstock-*` fields of an answer or an error, which both fronts tell alike."""
Ask = Callable[..., Awaitable[Told]]


def _told(pairs: Any) -> Told:
    prefix = "x-penstock-"
    return {name.removeprefix(prefix): text for name, text in pairs if name.startswith(prefix)}


async def by_grpc(
    house: FrontHouse, secret: str, request: GenerateRequest, seconds: float | None = None
) -> Told:
    call = house.stub.Generate(request, metadata=metadata(secret), timeout=seconds)
    await asyncio.wait({asyncio.ensure_future(call.code())})
    return _told(await call.trailing_metadata() or ())


async def by_http(
    house: FrontHouse, secret: str, path: str = CHAT, headers: Any = None, **content: Any
) -> Told:
    headers = {"authorization": f"Bearer {secret}"} | (headers or {})
    async with httpx.AsyncClient(base_url=house.url, headers=headers, timeout=30) as client:
        return _told((await client.post(path, **content)).headers.items())


async def plain_grpc(
    house: FrontHouse, secret: str, model: str = LOCAL, max_age_seconds: int | None = None
) -> Told:
    control = CacheControl(max_age_seconds=max_age_seconds)
    request = GenerateRequest(model=model, input=chat(temperature=0), cache_control=control)
    return await by_grpc(house, secret, request)


async def plain_http(
    house: FrontHouse, secret: str, model: str = LOCAL, max_age_seconds: int | None = None
) -> Told:
    headers = {} if max_age_seconds is None else {"cache-control": f"max-age={max_age_seconds}"}
    return await by_http(house, secret, headers=headers, json=body(model=model, temperature=0))


both_fronts = pytest.mark.parametrize("ask", [plain_grpc, plain_http])


@pytest.fixture
async def real(postgres_server: PrivateServer, tmp_path: Path) -> AsyncIterator[Services]:
    async with services(postgres_server, tmp_path) as found:
        yield found


@both_fronts
async def test_max_age_takes_a_stored_answer_that_is_young_enough(real: Services, ask: Ask) -> None:
    (house,), key = real.routers, await real.quota.new_key(PLENTY)

    async def cost_of(max_age_seconds: int | None = None) -> tuple[str, int]:
        told = await ask(house, key.secret, max_age_seconds=max_age_seconds)
        return told["cache"], int(told["cost-nano-usd"])

    async def two_minutes_later() -> None:
        await fetch(real.cache_dsn, "UPDATE entries SET stored_at = stored_at - interval '2 min'")

    assert ("miss", COST) == await cost_of()
    assert ("hit", 0) == await cost_of(60)
    await two_minutes_later()
    assert ("miss", COST) == await cost_of(60)
    # The answer that was made for it took the place of the old one.
    assert ("hit", 0) == await cost_of(60)
    await two_minutes_later()
    assert ("hit", 0) == await cost_of(600)
    assert ("hit", 0) == await cost_of()
    assert ("miss", COST) == await cost_of(0)
    assert (3 * COST, 0, 0) == await real.quota.balances(key.key.id)


async def test_identical_requests_in_flight_share_one_generation_that_is_billed_once(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    gate = asyncio.Event()

    class Gated(ScriptedBackend):
        async def generate(self, call):
            self.calls.append(call)
            call.on_sent()
            await gate.wait()
            for chunk in self.script:
                yield chunk

    async with services(postgres_server, tmp_path, routers=2) as real:
        local = Gated(text_answer())
        for house in real.routers:
            house.local = local
        key = await real.quota.new_key(PLENTY)
        asked = [
            asyncio.create_task(ask(house, key.secret))
            for ask in (plain_grpc, plain_http) * 2
            for house in real.routers
        ]
        await until(lambda: len(local.calls) == 1 and sum(map(waiting_in, real.caches)) == 7)
        gate.set()
        told = await asyncio.gather(*asked)
        assert Counter({"miss": 1, "shared": 7}) == Counter(one["cache"] for one in told)
        assert Counter({("pinned", COST): 1, ("shared_flight", 0): 7}) == Counter(
            (one["reason"], int(one["cost-nano-usd"])) for one in told
        )
        assert 1 == len(local.calls)
        assert {"settled": 1} == await real.reservations()
        assert (COST, 0, 0) == await real.quota.balances(key.key.id)
        again = await plain_grpc(real.routers[1], key.secret)
        assert ("hit", "0") == (again["cache"], again["cost-nano-usd"])


async def expire(real: Services, key: admin_pb2.CreateKeyResponse) -> None:
    """Soon, yet not before the ledger hears of it: an end in the past is refused."""
    update = admin_pb2.UpdateKeyRequest(key_id=key.key.id)
    update.expires_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    await real.quota.admin.UpdateKey(update, metadata=ADMIN)
    ask = GetPrincipalRequest(key_hash=hashlib.sha256(key.secret.encode()).digest())

    async def has_expired() -> bool:
        principal = await real.quota.quota.GetPrincipal(ask, metadata=SERVICE)
        return principal.state == Principal.STATE_EXPIRED

    await until(has_expired)


async def refused_keys(real: Services) -> dict[str, str]:
    """The text of a key, by the reason for which it may not ask for the local model."""
    admin = real.quota.admin
    revoked, expired, suspended, narrow, broke = [
        await real.quota.new_key(limit, name=name)
        for name, limit in (
            ("revoked", PLENTY), ("expired", PLENTY), ("suspended", PLENTY), ("narrow", PLENTY),
            ("broke", 0),
        )
    ]  # fmt: skip
    await admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=revoked.key.id), metadata=ADMIN)
    await expire(real, expired)
    await admin.SetSuspended(
        admin_pb2.SetSuspendedRequest(account_id=suspended.key.team_id, suspended=True),
        metadata=ADMIN,
    )
    await admin.UpdateKey(
        admin_pb2.UpdateKeyRequest(
            key_id=narrow.key.id, allowed_models=admin_pb2.AllowedModels(patterns=["acme/*"])
        ),
        metadata=ADMIN,
    )
    return {
        "KEY_UNKNOWN": "ps-nobody",
        "KEY_REVOKED": revoked.secret,
        "KEY_EXPIRED": expired.secret,
        "ACCOUNT_SUSPENDED": suspended.secret,
        "MODEL_NOT_ALLOWED": narrow.secret,
        "BUDGET_EXCEEDED": broke.secret,
    }


@both_fronts
async def test_no_key_that_is_refused_holds_anything(real: Services, ask: Ask) -> None:
    (house,) = real.routers
    for reason, secret in (await refused_keys(real)).items():
        assert reason == (await ask(house, secret))["error-reason"]
    assert [] == house.local.calls
    # Only the spent budget was asked for money at all.
    assert {"refused": 1} == await real.reservations()


@both_fronts
async def test_a_prompt_that_the_engine_finds_too_long_holds_nothing_afterwards(
    real: Services, ask: Ask
) -> None:
    (house,), key = real.routers, await real.quota.new_key(PLENTY)
    house.local.script = [TOO_LONG]
    assert "CONTEXT_LENGTH_EXCEEDED" == (await ask(house, key.secret))["error-reason"]
    assert {"voided": 1} == await real.reservations()
    assert (0, 0, 0) == await real.quota.balances(key.key.id)


@both_fronts
async def test_a_model_that_there_is_not_holds_nothing(real: Services, ask: Ask) -> None:
    (house,), key = real.routers, await real.quota.new_key(PLENTY)
    told = await ask(house, key.secret, model="local/none")
    assert "MODEL_NOT_FOUND" == told["error-reason"]
    assert {} == await real.reservations()


async def test_no_bad_request_over_grpc_asks_for_money(real: Services) -> None:
    (house,), key = real.routers, await real.quota.new_key(PLENTY)
    limit = house.catalogue.limits.request_bytes_max
    for name, request, _, _ in bad_requests.BAD:
        told = await by_grpc(house, key.secret, request)
        assert "INVALID_REQUEST" == told["error-reason"], name
    good = GenerateRequest(model=LOCAL, input=chat())
    told = await by_grpc(house, key.secret, good, 1e6)
    assert "INVALID_REQUEST" == told["error-reason"]
    told = await by_grpc(house, key.secret, GenerateRequest(model=LOCAL, input=chat("a" * limit)))
    assert "REQUEST_TOO_LARGE" == told["error-reason"]
    for passed in (0, -1):
        with pytest.raises(RpcError):
            await house.stub.Generate(good, metadata=metadata(key.secret), timeout=passed)
    assert {} == await real.reservations()


async def test_no_bad_request_over_http_asks_for_money(real: Services) -> None:
    (house,), key = real.routers, await real.quota.new_key(PLENTY)
    limit = house.catalogue.limits.request_bytes_max
    cases: list[tuple[str, dict[str, Any]]] = [
        *((CHAT, {"json": given}) for given, _, _ in bad_bodies.BAD),
        *((CHAT, {"json": body(), "headers": given}) for given, _, _ in bad_bodies.BAD_HEADERS),
        *(("/v1/completions", {"json": given}) for given, _, _ in bad_bodies.BAD_COMPLETIONS),
    ]
    for path, given in cases:
        told = await by_http(house, key.secret, path, **given)
        assert "INVALID_REQUEST" == told["error-reason"], given
    for content_type, reason in (
        ("application/json", "INVALID_JSON"),
        ("text/plain", "UNSUPPORTED_MEDIA_TYPE"),
    ):
        headers = {"content-type": content_type}
        told = await by_http(house, key.secret, content=b"{", headers=headers)
        assert reason == told["error-reason"]
    told = await by_http(house, key.secret, json=body(user="a" * limit))
    assert "REQUEST_TOO_LARGE" == told["error-reason"]
    assert {} == await real.reservations()
