"""Ray's REST API: the only place of Penstock that knows what it looks like at run time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

REQUEST_SECONDS = 2.0
"""It answers in about 10 ms; a head that takes this long is treated as unreachable for now."""

REPLICA_ACTOR_PREFIX = "SERVE_REPLICA::"
"""Targets of an application without replicas are Ray's proxy, under another name."""


class RayUnreachable(Exception):
    """The API did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class RayReplica:
    id: str
    state: str
    """Ray's word: STARTING, UPDATING, RECOVERING, RUNNING, STOPPING, PENDING_MIGRATION."""
    address: str
    """host:port of its gRPC server; empty until Ray has told it."""


@dataclass(frozen=True, slots=True)
class RayApplication:
    name: str
    deployment: str
    status: str
    target_replicas: int
    replicas: tuple[RayReplica, ...]
    settled: bool
    """Its replica count may be changed: it is neither being deployed nor deleted."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Of all live nodes together. CPUs are counts that Ray was told of, not cores."""

    cpus: float
    gpus: float


class RayApi(Protocol):
    async def applications(self) -> dict[str, RayApplication]:
        """By name.

        Raises:
            RayUnreachable.
        """

    async def scale(self, application: RayApplication, replicas: int) -> None:
        """Sets the replica count that Ray then works towards.

        Raises:
            RayUnreachable: also where Ray refuses.
        """

    async def resources(self) -> Resources:
        """What Ray shares out among replicas, free or not.

        Raises:
            RayUnreachable.
        """


class RestRayApi:
    """Over HTTP, with the cluster's token."""

    def __init__(self, base_url: str, token: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=REQUEST_SECONDS,
            # The cluster is ours: a proxy of the environment must not see the token.
            trust_env=False,
        )

    async def applications(self) -> dict[str, RayApplication]:
        reply = await self._call("GET", "/api/serve/applications/")
        try:
            return parse(reply.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RayUnreachable(f"Ray's report cannot be read: {error!r}") from error

    async def scale(self, application: RayApplication, replicas: int) -> None:
        path = f"/api/v1/applications/{application.name}/deployments/{application.deployment}/scale"
        await self._call("POST", path, {"target_num_replicas": replicas})

    async def resources(self) -> Resources:
        reply = await self._call("GET", "/api/v0/nodes")
        try:
            return parse_nodes(reply.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RayUnreachable(f"Ray's nodes cannot be read: {error!r}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            reply = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise RayUnreachable(f"Ray's API does not answer: {error!r}") from error
        if reply.is_error:
            raise RayUnreachable(f"Ray's API answers {reply.status_code}: {reply.text[:300]}")
        return reply


def parse(report: Mapping[str, Any]) -> dict[str, RayApplication]:
    """The applications of Ray Serve's status report. Ours have one deployment each.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is no such report.
    """
    addresses = _addresses(report.get("target_groups") or ())
    found = {}
    for name, app in report["applications"].items():
        # A just deployed application has no deployments yet.
        for deployment, details in list(app["deployments"].items())[:1]:
            words = (details["status"], details.get("message") or app.get("message") or "")
            found[name] = RayApplication(
                name=name,
                deployment=deployment,
                status=": ".join(filter(None, words)),
                target_replicas=int(details["target_num_replicas"]),
                replicas=tuple(
                    RayReplica(
                        id=replica["replica_id"],
                        state=replica["state"],
                        address=addresses.get(replica["actor_name"], ""),
                    )
                    for replica in details["replicas"]
                ),
                settled=app["status"] not in {"DEPLOYING", "DELETING", "NOT_STARTED"},
            )
    return found


def parse_nodes(report: Mapping[str, Any]) -> Resources:
    """The resources of Ray's list of nodes.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is no such list.
    """
    totals = [
        node["resources_total"]
        for node in report["data"]["result"]["result"]
        if node["state"] == "ALIVE"
    ]
    return Resources(
        cpus=sum(float(total.get("CPU", 0)) for total in totals),
        gpus=sum(float(total.get("GPU", 0)) for total in totals),
    )


def _addresses(groups: Any) -> dict[str, str]:
    return {
        target["name"]: f"{target['ip']}:{target['port']}"
        for group in groups
        if group["protocol"] == "gRPC"
        for target in group["targets"]
        if target["name"].startswith(REPLICA_ACTOR_PREFIX)
    }
