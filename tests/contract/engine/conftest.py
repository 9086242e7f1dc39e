from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contract.engine.rigs import RIGS, Rig
from penstock.local.engines.base import Engine

# vLLM and torch warn about their own code: with vLLM a warning is shown, and is no error.
VLLM = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
ENGINES = ["llamacpp", pytest.param("vllm", marks=VLLM)]


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
