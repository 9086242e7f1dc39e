"""Calls of AdminService: where it is, its token, who changes what and why, errors as told."""

import getpass
import math
import os
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import grpc

from penstock.cli import wording
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.state import State, read_env
from penstock.cli.wording import NO_NAMES
from penstock.core import admin_headers
from penstock.core.channel import bearer, connect
from penstock.core.errors import InvalidRequest, PenstockError
from penstock.core.status import from_rpc_error
from penstock.quota.v1 import admin_pb2_grpc

T = TypeVar("T")

CALL_SECONDS = 20.0

UNIT_MAX = 90
"""Of a duration's number; above it the next unit is told."""

ADDRESS = "PENSTOCK_QUOTA_ADMIN_ADDRESS"
TOKEN = "PENSTOCK_ADMIN_TOKEN"  # noqa: S105 - a variable's name
TRACES = "PENSTOCK_TRACES_STORE"
KEY_ID = "PENSTOCK_KEY_ID"
QUOTA_DSN = "PENSTOCK_QUOTA_DSN"


PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What gRPC's metadata may hold; anything else is percent-encoded UTF-8."""

REMEDIES = {
    "SERVICE_TOKEN_INVALID": f"Set {TOKEN} to the ledger's own, as `make up` wrote it.",
    "ADJUSTMENT_KEY_REUSED": "`penstock ledger entries --operation adjust` lists what was made.",
    "GRANT_KEY_REUSED": "`penstock grant list` shows the one that is there.",
    "POOL_IN_USE": "`penstock ledger entries --account pool:NAME` lists its attempts.",
    "RESERVATION_UNKNOWN": "`penstock ledger entries --request ID` lists a request's reservations.",
}
"""By reason: where the service's own words cannot know what a person types."""

SAID_IN_FULL = frozenset({"PROVIDER_IN_OTHER_POOL"})
"""Reasons whose message tells more than their violations do, which would only double it."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where a service listens and what it demands."""

    address: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes the ledger's configuration or its balances, why, and whether he does."""

    actor: str
    reason: str = ""
    dry_run: bool = False

    @classmethod
    def of(cls, actor: str, reason: str, *, dry_run: bool) -> "Change":
        """As typed; an empty actor is the user of this machine."""
        return cls(actor.strip() or system_user(), reason.strip(), dry_run)

    def faults(self, *, reason_needed: bool) -> list[str]:
        """Of who and why, a line each."""
        found = [
            f"{name} has {len(text)} characters; at most {most}"
            for name, text, most in (
                ("--reason", self.reason, admin_headers.REASON_CHARACTERS_MAX),
                ("--actor", self.actor, admin_headers.ACTOR_CHARACTERS_MAX),
            )
            if len(text) > most
        ]
        if reason_needed and not self.reason:
            found.insert(0, "--reason is missing or blank: say why")
        return found

    def metadata(self) -> list[tuple[str, str]]:
        found = [(admin_headers.ACTOR, quote(self.actor, safe=PRINTABLE))]
        if self.reason:
            found.append((admin_headers.REASON, quote(self.reason, safe=PRINTABLE)))
        if self.dry_run:
            found.append((admin_headers.DRY_RUN, "1"))
        return found


def system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have a number only.
        return f"uid-{os.getuid()}"


def settings(state: State, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment's variables over those that `penstock up` wrote."""
    env = os.environ if environment is None else environment
    given = {name: value for name, value in env.items() if name.startswith("PENSTOCK_")}
    return {**read_env(state.env), **read_env(state.admin_env), **given}


def access(state: State, address: str = ADDRESS, token: str = TOKEN) -> Access:
    """By the names of the variables that tell it.

    Raises:
        CliError: they are nowhere.
    """
    found = settings(state)
    at, secret = found.get(address), found.get(token)
    if not at or not secret:
        raise CliError(
            f"no ledger is known here: {state.admin_env} is not there or does not name it",
            remedy=f"Start Penstock with `make up`, or set {address} and {token}.",
        )
    return Access(at, secret)


class Admin:
    """AdminService's methods as awaitables that raise PenstockError."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = (bearer(token),)

    async def call(
        self, method: str, request: object, metadata: Sequence[tuple[str, str]] = ()
    ) -> object:
        """Raises PenstockError as the service meant it."""
        answer, _ = await self.call_once(method, request, metadata)
        return answer

    async def call_once(
        self, method: str, request: object, metadata: Sequence[tuple[str, str]] = ()
    ) -> tuple[object, bool]:
        """As `call`; also whether it was done before, of what is done once a key only."""
        call = getattr(self._stub, method)(
            request,
            metadata=(*self._metadata, *metadata),
            timeout=CALL_SECONDS,
            wait_for_ready=False,
        )
        try:
            answer = await call
            trailing = await call.trailing_metadata()
            return answer, trailing.get(admin_headers.REPLAYED) == "true"
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def stream(
        self, method: str, requests: object, metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[object]:
        """Of a method that streams; as long as it takes. Raises PenstockError."""
        bound = getattr(self._stub, method)
        return _answers(bound(requests, metadata=(*self._metadata, *metadata)))


async def _answers(call: AsyncIterable[T]) -> AsyncIterator[T]:
    try:
        async for answer in call:
            yield answer
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


def told(
    error: PenstockError, found: str, method: str = "", names: Mapping[str, str] = NO_NAMES
) -> CliError:
    """A service's refusal as a line: message and reason; its address where it is away.

    In an operator's words: see `wording`. `method`: of AdminService. `names`: of accounts, by id.
    A fault of what was typed has the status of one that is found here.
    """
    if error.code is grpc.StatusCode.UNAVAILABLE and error.reason == error.default_reason:
        return CliError(
            f"nothing answers at {found}",
            remedy=f"Is it running? `penstock status` tells.{_whence(found)}",
        )
    lines = [] if _repeats(error) else [wording.sentence(error.message, method, names)]
    if error.reason not in SAID_IN_FULL:
        lines += [wording.fault(v.field, v.description, method) for v in error.violations]
    if error.retry_after_seconds is not None and "resets_at" not in error.metadata:
        lines.append(f"again after {duration(error.retry_after_seconds)}")
    return CliError(
        f"{error.reason}: " + "\n  ".join(lines),
        remedy=_remedy(error, names),
        code=BAD_USAGE if error.code is grpc.StatusCode.INVALID_ARGUMENT else 1,
    )


def _whence(found: str) -> str:
    """That the address is of the environment, where it is: a stale one is easily forgotten."""
    return f" {ADDRESS} is set to it here." if os.environ.get(ADDRESS) == found else ""


def _remedy(error: PenstockError, names: Mapping[str, str]) -> str:
    ids = wording.accounts_in(error.message)
    if error.reason == "BUDGET_MISSING" and ids:
        name = names.get(ids[0], ids[0])
        return (
            f"`penstock budget set 5 --account {name}` allows it 5 USD a month; a budget of its"
            " team or organisation does as well, and `unlimited` instead of 5 limits nothing."
        )
    if error.reason == "PROVIDER_IN_OTHER_POOL" and "pool" in error.metadata:
        pool = error.metadata["pool"]
        return (
            f"`penstock pool set {pool} --provider …` with those that stay takes it out; "
            f"`penstock pool close {pool}` frees all of them."
        )
    return REMEDIES.get(error.reason, "")


def _repeats(error: PenstockError) -> bool:
    """Its message only joins its violations, which are told one by one."""
    if not error.violations:
        return False
    return error.message == InvalidRequest.of(error.violations).message
