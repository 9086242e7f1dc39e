from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contract.engine.rigs import RIGS, Rig
from penstock.local.engines.base import Engine

ENGINES = ["llamacpp", pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(scope="module", params=ENGINES)
def rig(request: pytest.FixtureRequest) -> Rig:
    rig = RIGS[request.param]
    if rig.missing:
        pytest.skip(rig.missing)
    return rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(rig: Rig) -> AsyncIterator[Engine]:
    engine = rig.create()
    await engine.start()
    yield engine
    await engine.close()
