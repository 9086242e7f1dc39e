import json
from typing import Any

import httpx
import pytest

from penstock.capacity.ray import RayReplica, RayUnreachable, Resources, RestRayApi, parse


def report(**changes: Any) -> dict[str, Any]:
    replica = {"replica_id": "r1", "state": "RUNNING", "actor_name": "SERVE_REPLICA::local-m#R#r1"}
    starting = {
        "replica_id": "r2",
        "state": "STARTING",
        "actor_name": "SERVE_REPLICA::local-m#R#r2",
    }
    deployment = {
        "status": "UPSCALING",
        "message": "",
        "target_num_replicas": 2,
        "replicas": [replica, starting],
    }
    app = {"status": "RUNNING", "message": "", "deployments": {"R": deployment}}
    groups = [
        {
            "protocol": protocol,
            "targets": [{"name": replica["actor_name"], "ip": "10.0.0.1", "port": port}],
        }
        for protocol, port in (("HTTP", 30000), ("gRPC", 40000))
    ]
    return {"applications": {"local-m": app | changes}, "target_groups": groups}


def test_a_report_gives_replicas_with_their_grpc_addresses() -> None:
    app = parse(report())["local-m"]
    assert (app.deployment, app.target_replicas, app.settled) == ("R", 2, True)
    assert app.replicas == (
        RayReplica("r1", "RUNNING", "10.0.0.1:40000"),
        RayReplica("r2", "STARTING", ""),
    )
    assert app.status == "UPSCALING"


def test_rays_own_proxy_is_no_replica() -> None:
    given = report()
    given["target_groups"][1]["targets"][0]["name"] = "SERVE_PROXY_ACTOR-abc"
    assert [r.address for r in parse(given)["local-m"].replicas] == ["", ""]


@pytest.mark.parametrize("status", ["DEPLOYING", "DELETING", "NOT_STARTED"])
def test_an_application_in_the_making_is_not_settled(status: str) -> None:
    assert not parse(report(status=status))["local-m"].settled


def test_an_application_without_deployments_is_left_out() -> None:
    assert parse(report(deployments={})) == {}


def api(handle: Any) -> RestRayApi:
    subject = RestRayApi("http://ray", "secret")
    subject._client = httpx.AsyncClient(
        base_url="http://ray",
        headers=subject._client.headers,
        transport=httpx.MockTransport(handle),
    )
    return subject


async def test_scaling_names_the_deployment_and_shows_the_token() -> None:
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    await api(handle).scale(parse(report())["local-m"], 3)
    (request,) = seen
    assert request.url.path == "/api/v1/applications/local-m/deployments/R/scale"
    assert json.loads(request.content) == {"target_num_replicas": 3}
    assert request.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(401, text="no"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"applications": {"x": {}}}),
        httpx.Response(200, json=[]),
    ],
    ids=["refused", "no JSON", "another shape", "a list"],
)
async def test_an_answer_that_is_none_is_unreachable(reply: httpx.Response) -> None:
    with pytest.raises(RayUnreachable):
        await api(lambda _: reply).applications()


def node(state: str, **resources: float) -> dict[str, Any]:
    return {"state": state, "resources_total": resources}


async def test_what_can_be_shared_out_is_that_of_live_nodes() -> None:
    nodes = [node("ALIVE", CPU=2.0), node("ALIVE", CPU=4.0, GPU=1.0), node("DEAD", CPU=8.0)]
    reply = httpx.Response(200, json={"data": {"result": {"result": nodes}}})
    assert Resources(cpus=6, gpus=1) == await api(lambda _: reply).resources()


@pytest.mark.parametrize("body", [[], {"data": None}, {"data": {"result": {"result": [{}]}}}])
async def test_a_list_of_nodes_that_is_none_is_unreachable(body: Any) -> None:
    with pytest.raises(RayUnreachable):
        await api(lambda _: httpx.Response(200, json=body)).resources()


async def test_no_answer_is_unreachable() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RayUnreachable, match="refused"):
        await api(fail).applications()
