"""Head up, models up, ready; then wait for SIGTERM or the head's end; then everything down."""

import asyncio
import contextlib
import logging
from pathlib import Path

from penstock.core.config import ConfigError, load
from penstock.local.cluster import Head, HeadFailed, HeadSettings, deploy, logical_cpus
from penstock.local.config import LocalConfig, ReplicaSettings, replica_settings
from penstock.local.models import ModelNotFound, resolve
from penstock.local.serve_api import DeployFailed, RestServeApi

logger = logging.getLogger(__name__)

STARTUP_FAULTS = (ConfigError, ModelNotFound, HeadFailed, DeployFailed)
"""What an operator can mend: told in a line, without a traceback."""


def model_settings(config: LocalConfig) -> list[ReplicaSettings]:
    """The catalogue's local models, their weights found.

    Raises:
        ConfigError, ModelNotFound.
    """
    catalogue = load(config.catalogue_path)
    base = config.catalogue_path.resolve().parent
    return [
        replica_settings(name, model, resolve(model.source, base=base))
        for name, model in catalogue.models.items()
    ]


async def run(config: LocalConfig, stop: asyncio.Event) -> None:
    """Until `stop` is set.

    Raises:
        any of STARTUP_FAULTS; HeadFailed also later, when the head ends by itself.
    """
    models = model_settings(config)
    head = Head(
        HeadSettings(config.ports, config.ray_token, config.router_token, logical_cpus(models))
    )
    serving = asyncio.create_task(_serve(config, head, models))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        for task in (serving, stopping):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, *STARTUP_FAULTS):
                await task
        _set_ready(config.ready_file, models=None)
        logger.info("stopping Ray")
        await head.stop()


async def _serve(config: LocalConfig, head: Head, models: list[ReplicaSettings]) -> None:
    await head.start(logger.info)
    deploying = asyncio.create_task(_deploy(config, models))
    ending = asyncio.create_task(head.ended())
    try:
        await asyncio.wait({deploying, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            deploying.result()
            _set_ready(config.ready_file, models=models)
            logger.info("ready: %s", ", ".join(m.name for m in models))
        raise HeadFailed(f"the Ray head ended by itself with status {await ending}")
    finally:
        deploying.cancel()
        ending.cancel()


async def _deploy(config: LocalConfig, models: list[ReplicaSettings]) -> None:
    api = RestServeApi(f"http://127.0.0.1:{config.ports.dashboard}", config.ray_token)
    try:
        await deploy(api, models, logger.info)
    finally:
        await api.close()


def _set_ready(path: Path | None, *, models: list[ReplicaSettings] | None) -> None:
    if path is None:
        return
    if models is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text("".join(f"{m.name}\n" for m in models))
