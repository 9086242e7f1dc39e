"""Deploying over a Serve that is told what to say; the configuration that it gets."""

from collections.abc import Sequence

import pytest

from penstock.local.cluster import (
    Head,
    HeadFailed,
    HeadSettings,
    deploy,
    head_environment,
    logical_cpus,
)
from penstock.local.config import Ports, ReplicaSettings
from penstock.local.ports import claim_block
from penstock.local.serve_api import ApiSilent, AppState, DeployFailed, app_state, deploy_config
from support.tcp import free_port

MODEL = ReplicaSettings(
    name="m",
    engine="llamacpp",
    path="/m.gguf",
    format="gguf",
    context_tokens=512,
    replicas=3,
    slots=2,
    queue_limit=2,
    threads=1,
    cpus=1.5,
    gpus=0,
)


class FakeServe:
    def __init__(self, *reports: list[AppState] | Exception) -> None:
        self._reports = list(reports)
        self.deployed: Sequence[ReplicaSettings] = ()

    async def deploy(self, models: Sequence[ReplicaSettings]) -> None:
        self.deployed = models

    async def states(self) -> list[AppState]:
        report = self._reports.pop(0)
        if isinstance(report, Exception):
            raise report
        return report


def state(status: str, message: str = "") -> AppState:
    return app_state("local-m", {"status": status, "message": message, "deployments": {}})


async def test_it_returns_when_every_model_answers_and_tells_the_way() -> None:
    told: list[str] = []
    serve = FakeServe([], ApiSilent("silent"), [state("DEPLOYING")], [state("RUNNING")])
    await deploy(serve, [MODEL], told.append)
    assert serve.deployed == [MODEL]
    assert told[0] == "starting Ray Serve"
    assert "silent" in told
    assert told[-1] == "waiting for local-m (DEPLOYING)"


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
async def test_a_failed_model_is_told_in_serves_words(status: str) -> None:
    with pytest.raises(DeployFailed, match=r"local-m: .*broken weights"):
        await deploy(FakeServe([state(status, "broken weights")]), [MODEL], lambda _: None)


def test_of_a_traceback_only_the_first_line_and_the_error_are_told() -> None:
    message = (
        "Failed to start. Error:\n\x1b[36mray::X()\x1b[39m\n  File x\nModelUnusable: no weights\n"
    )
    told = state("DEPLOY_FAILED", message).message
    assert told == "DEPLOY_FAILED Failed to start. Error: … ModelUnusable: no weights"
    assert state("RUNNING").message == "RUNNING"


def test_the_scale_is_ours_and_no_secret_goes_through_rays_api() -> None:
    config = deploy_config([MODEL], http_port=1, grpc_port=2)
    (application,) = config["applications"]
    assert application["external_scaler_enabled"] is True
    assert application["deployments"] == [{"name": "Replica", "num_replicas": 3}]
    assert application["args"] == MODEL.model_dump()
    assert set(application["args"]) == set(ReplicaSettings.model_fields)
    assert config["http_options"]["host"] == "127.0.0.1"


def test_ray_is_told_of_enough_cpus_for_every_replica_and_one_to_replace() -> None:
    assert logical_cpus([MODEL, MODEL]) >= 10


def head_settings(gcs: int) -> HeadSettings:
    return HeadSettings(Ports(free_port(), gcs), "ray-secret", "router-secret", 1)


def test_a_head_is_private_and_does_not_show_its_secrets() -> None:
    settings = head_settings(free_port())
    block = claim_block()
    environment = head_environment(settings, {}, block)
    block.release()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "1"
    assert "secret" not in repr(settings)
    # Ray's sockets: <folder>/session_<27 characters>_<pid>/sockets/plasma_store; at most 107.
    assert len(str(settings.ray_folder)) < 50


async def test_a_taken_port_is_told_with_the_remedy() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        head = Head(head_settings(taken.getsockname()[1]))
        with pytest.raises(HeadFailed, match=r"port \d+ for Ray is taken.*PENSTOCK_RAY_ADDRESS"):
            await head.start(lambda _: None)
        await head.stop()
