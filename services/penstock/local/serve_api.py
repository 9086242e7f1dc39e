"""Ray Serve's REST API, as far as deploying needs it."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from penstock.core.catalogue import application_of
from penstock.core.ports import free_ports
from penstock.local.config import DEPLOYMENT, ReplicaSettings

logger = logging.getLogger(__name__)

SERVICER = "penstock.local.v1.local_pb2_grpc.add_LocalServiceServicer_to_server"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

REQUEST_SECONDS = 60.0
"""The first call to a fresh head starts Serve's controller, which takes seconds."""

DEPLOY_SECONDS = 120.0
"""A fresh head that fails by itself is asked again within this: as long as it may take to start."""

RETRY_SECONDS = 1.0

TAIL_CHARACTERS = 2_000
"""Of what Ray says: a traceback, whose end names the fault."""


class DeployFailed(Exception):
    """Serve cannot run an application; says Serve's own reason."""


class ApiSilent(Exception):
    """No answer this time; the next may come."""


@dataclass(frozen=True, slots=True)
class AppState:
    application: str
    is_running: bool
    is_failed: bool
    message: str


class ServeApi(Protocol):
    async def deploy(self, models: Sequence[ReplicaSettings]) -> None: ...

    async def states(self) -> list[AppState]: ...


class RestServeApi:
    """Over the dashboard of a head with token authentication."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=REQUEST_SECONDS,
            # Ours is on this machine: a proxy of the environment must not see the token.
            trust_env=False,
        )

    async def deploy(self, models: Sequence[ReplicaSettings]) -> None:
        """Makes exactly these models the applications of the cluster.

        Asks again where Ray fails by itself, as a head does now and then that has just started.

        Raises:
            DeployFailed: Serve refuses the configuration, or goes on failing.
        """
        http_port, grpc_port = free_ports(2)
        config = deploy_config(models, http_port=http_port, grpc_port=grpc_port)
        until = self._monotonic() + DEPLOY_SECONDS
        while True:
            try:
                reply = await self._client.put("/api/serve/applications/", json=config)
            except httpx.HTTPError as error:
                is_final, said = False, f"Ray's API does not answer: {error!r}"
            else:
                if not reply.is_error:
                    return
                is_final = not reply.is_server_error
                said = f"Ray Serve answers {reply.status_code}: {_last_line(reply.text)}"
                logger.warning("%s", f"{said}\n{reply.text[-TAIL_CHARACTERS:]}")
            if is_final or self._monotonic() >= until:
                raise DeployFailed(said)
            await self._sleep(RETRY_SECONDS)

    async def states(self) -> list[AppState]:
        """The applications as they are now.

        Raises:
            ApiSilent: no answer this time.
        """
        try:
            reply = await self._client.get("/api/serve/applications/")
            reply.raise_for_status()
        except httpx.HTTPError as error:
            raise ApiSilent(f"Ray's API does not answer: {error!r}") from error
        return [app_state(name, app) for name, app in reply.json()["applications"].items()]

    async def close(self) -> None:
        await self._client.aclose()


def deploy_config(
    models: Sequence[ReplicaSettings], *, http_port: int, grpc_port: int
) -> dict[str, Any]:
    """Serve's declarative configuration.

    Its proxy cannot be switched off (direct ingress forces one on the head), though nobody calls
    it: it gets two free ports, for on a taken one it would retry without end.
    """
    return {
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "grpc_options": {"port": grpc_port, "grpc_servicer_functions": [SERVICER]},
        "applications": [_application(model) for model in models],
    }


def _application(model: ReplicaSettings) -> dict[str, Any]:
    name = application_of(model.name)
    return {
        "name": name,
        # Serve lists the addresses only of applications that have a route.
        "route_prefix": f"/{name}",
        "import_path": "penstock.local.app:build",
        "args": model.model_dump(),
        # The replica count is capacity's to set.
        "external_scaler_enabled": True,
        "deployments": [{"name": DEPLOYMENT, "num_replicas": model.replicas}],
    }


def app_state(name: str, app: dict[str, Any]) -> AppState:
    """One application of Serve's status report."""
    words = [essence(app.get("message") or "")]
    words += [essence(d.get("message") or "") for d in app.get("deployments", {}).values()]
    return AppState(
        application=name,
        is_running=app["status"] == "RUNNING",
        is_failed=app["status"] in {"DEPLOY_FAILED", "UNHEALTHY"},
        message=" ".join(filter(None, [app["status"], *words])),
    )


def essence(message: str) -> str:
    """Serve's words without its traceback: the first line, and the error at the very end."""
    lines = _lines(message)
    return " … ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else ""


def _last_line(message: str) -> str:
    return "".join(_lines(message)[-1:]) or "nothing more"


def _lines(message: str) -> list[str]:
    return [line.strip() for line in _COLOUR.sub("", message).splitlines() if line.strip()]
