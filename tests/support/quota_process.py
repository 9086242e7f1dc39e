"""Quota as operators run it: `python -m penstock.quota` in a process of its own."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.core.channel import bearer, connect
from penstock.core.ids import uuid7
from penstock.core.ports import free_ports
from penstock.core.status import from_rpc_error
from penstock.quota.v1 import admin_pb2, admin_pb2_grpc, quota_pb2, quota_pb2_grpc

SERVICE_TOKEN = "service-token-of-a-test"
ADMIN_TOKEN = "admin-token-of-a-test"
SERVICE = (bearer(SERVICE_TOKEN),)
ADMIN = (bearer(ADMIN_TOKEN),)
READY_SECONDS = 30
RESERVE_SECONDS = 20


@dataclass
class QuotaProcess:
    """A running process and typed stubs for both of its ports."""

    process: asyncio.subprocess.Process
    address: str
    admin_address: str
    channel: grpc.aio.Channel
    admin_channel: grpc.aio.Channel

    @property
    def quota(self) -> quota_pb2_grpc.QuotaServiceStub:
        return quota_pb2_grpc.QuotaServiceStub(self.channel)

    @property
    def admin(self) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self.admin_channel)

    async def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status

    async def wait_health(self, status: int) -> None:
        """Follows the health service's own stream until it says so."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        call = stub.Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_SECONDS
        )
        async for answer in call:
            if answer.status == status:
                call.cancel()
                return

    async def new_key(
        self, limit: int | None, *, name: str = "acme"
    ) -> admin_pb2.CreateKeyResponse:
        """A key of a new organisation, with one total budget of its own."""
        org = await self.admin.CreateAccount(
            admin_pb2.CreateAccountRequest(kind=admin_pb2.Account.KIND_ORG, name=name),
            metadata=ADMIN,
        )
        team = await self.admin.CreateAccount(
            admin_pb2.CreateAccountRequest(
                kind=admin_pb2.Account.KIND_TEAM, name="team", org_id=org.id
            ),
            metadata=ADMIN,
        )
        created = await self.admin.CreateKey(
            admin_pb2.CreateKeyRequest(team_id=team.id, name="key"), metadata=ADMIN
        )
        budget = admin_pb2.SetBudgetRequest(
            account_id=created.key.id, window=admin_pb2.Budget.WINDOW_TOTAL
        )
        if limit is None:
            budget.unlimited = True
        else:
            budget.limit_nano_usd = limit
        await self.admin.SetBudget(budget, metadata=ADMIN)
        return created

    async def balances(self, account_id: str) -> tuple[int, int, int]:
        """posted, held, suspense of the account's one budget."""
        (budget,) = (
            await self.admin.ListBudgets(
                admin_pb2.ListBudgetsRequest(account_id=account_id), metadata=ADMIN
            )
        ).budgets
        return budget.posted_nano_usd, budget.held_nano_usd, budget.suspense_nano_usd


def reserve_request(
    reservation_id: str, key_id: str, amount: int, **changes: object
) -> quota_pb2.ReserveRequest:
    fields: dict[str, object] = {
        "request_id": "req_1",
        "attempt": 1,
        "pool": quota_pb2.POOL_KIND_PAID,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "ttl_ms": 60_000,
    }
    return quota_pb2.ReserveRequest(
        reservation_id=reservation_id,
        key_id=key_id,
        amount_nano_usd=amount,
        **(fields | changes),
    )


@asynccontextmanager
async def quota_process(
    dsn: str, folder: Path, *, ready: bool = True
) -> AsyncIterator[QuotaProcess]:
    """Starts it on free ports, waits until it is healthy, ends it by SIGTERM at the end."""
    address, admin_address = (f"127.0.0.1:{port}" for port in free_ports(2))
    environment = {
        **os.environ,
        "PENSTOCK_QUOTA_DSN": dsn,
        "PENSTOCK_SERVICE_TOKEN": SERVICE_TOKEN,
        "PENSTOCK_ADMIN_TOKEN": ADMIN_TOKEN,
        "PENSTOCK_QUOTA_LISTEN": address,
        "PENSTOCK_QUOTA_ADMIN_LISTEN": admin_address,
    }
    environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    log = folder / f"quota-{address.rsplit(':', 1)[1]}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock.quota", env=environment, stdout=output, stderr=output
        )
    channel, admin_channel = connect(address), connect(admin_address)
    running = QuotaProcess(process, address, admin_address, channel, admin_channel)
    try:
        if ready:
            await running.wait_health(health_pb2.HealthCheckResponse.SERVING)
        yield running
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        await channel.close()
        await admin_channel.close()
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 30)


def new_name() -> str:
    """Of an organisation that no other test has."""
    return f"org-{uuid7()[-12:]}"


def one_nano(key_id: str, **changes: object) -> quota_pb2.ReserveRequest:
    """A new reserve of a nano-USD."""
    return reserve_request(uuid7(), key_id, 1, **changes)


async def reason_of(call: Awaitable[object]) -> str:
    """Code and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return _reason(raised.value)


async def reserved(quota: QuotaProcess, request: quota_pb2.ReserveRequest) -> str:
    """ "ok", or code and reason."""
    try:
        await quota.quota.Reserve(request, metadata=SERVICE, timeout=RESERVE_SECONDS)
    except grpc.aio.AioRpcError as error:
        return _reason(error)
    return "ok"


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name} {from_rpc_error(error).reason}"
