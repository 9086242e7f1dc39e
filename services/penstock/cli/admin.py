"""Calls of quota's AdminService: where it is, the operator's token, errors as they are told."""

import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from penstock.cli.errors import CliError
from penstock.cli.state import State, read_env
from penstock.core.channel import bearer, connect
from penstock.core.errors import PenstockError
from penstock.core.status import from_rpc_error
from penstock.quota.v1 import admin_pb2_grpc

CALL_SECONDS = 20.0

UNIT_MAX = 90
"""Of a duration's number; above it the next unit is told."""

ADDRESS = "PENSTOCK_QUOTA_ADMIN_ADDRESS"
TOKEN = "PENSTOCK_ADMIN_TOKEN"  # noqa: S105 - a variable's name
TRACES = "PENSTOCK_TRACES_STORE"
KEY_ID = "PENSTOCK_KEY_ID"
QUOTA_DSN = "PENSTOCK_QUOTA_DSN"


@dataclass(frozen=True, slots=True)
class Access:
    """Where AdminService listens and what it demands."""

    address: str
    token: str = field(repr=False)


def settings(state: State, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment's variables over those that `penstock up` wrote."""
    env = os.environ if environment is None else environment
    given = {name: value for name, value in env.items() if name.startswith("PENSTOCK_")}
    return {**read_env(state.env), **read_env(state.admin_env), **given}


def access(state: State) -> Access:
    found = settings(state)
    address, token = found.get(ADDRESS), found.get(TOKEN)
    if not address or not token:
        raise CliError(
            f"no ledger is known here: {state.admin_env} is not there",
            remedy=f"Start Penstock with `make up`, or set {ADDRESS} and {TOKEN}.",
        )
    return Access(address, token)


class Admin:
    """AdminService's methods as awaitables that raise PenstockError."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = (bearer(token),)

    async def call(self, method: str, request: object) -> object:
        """Raises PenstockError as the service meant it."""
        bound = getattr(self._stub, method)
        try:
            return await bound(
                request, metadata=self._metadata, timeout=CALL_SECONDS, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


@asynccontextmanager
async def opened(found: Access) -> AsyncIterator[Admin]:
    async with connect(found.address) as channel:
        yield Admin(channel, found.token)


def duration(seconds: float) -> str:
    """For people: "800 ms", "45 s", "5 min", "3 h", "6 days"; rounded up, so that it is enough."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)} ms"
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if math.ceil(seconds / size) <= UNIT_MAX:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{math.ceil(seconds / 86_400)} days"


def told(error: PenstockError, found: str) -> CliError:
    """A service's refusal as a line: message and reason; its address where it is away."""
    if error.code is grpc.StatusCode.UNAVAILABLE and error.reason == error.default_reason:
        return CliError(
            f"nothing answers at {found}", remedy="Is it running? `penstock status` tells."
        )
    lines = [error.message]
    lines += [f"  {v.field}: {v.description}" for v in error.violations]
    if error.retry_after_seconds is not None and "resets_at" not in error.metadata:
        lines.append(f"  again after {duration(error.retry_after_seconds)}")
    return CliError(f"{error.reason}: " + "\n".join(lines))
