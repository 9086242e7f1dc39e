"""llama.cpp itself: what the engine's promises rest on."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from contract.engine.asking import HELD_BACK, ask, collect
from contract.engine.rigs import RIGS
from penstock.core.errors import InvalidRequest
from penstock.local.engines.base import Engine
from penstock.type.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARACTER_TOKENS_MAX = 4
"""A character of four bytes may take as many tokens, and llama.cpp tells of it when it is whole."""

Format = chat_pb2.ResponseFormat


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    engine = RIGS["llamacpp"].create()
    await engine.start()
    yield engine
    await engine.close()


@pytest.mark.parametrize("raw", [False, True], ids=["messages", "prompt"])
@pytest.mark.parametrize("fields", [*HELD_BACK.values(), {"temperature": 2.0, "seed": 3}])
async def test_each_token_is_told_of_at_once(
    engine: Engine, raw: bool, fields: dict[str, Any]
) -> None:
    chat = ask("Write twenty emoji: 🌊", max_tokens=64, **fields)
    if raw:
        chat.ClearField("messages")
        chat.prompt = "🌊"
    answer = await collect(engine.generate(chat, request_id="a"))
    totals = [delta.completion_tokens for delta in answer.deltas]
    told = [after - before for before, after in pairwise(totals)]
    assert max(told) <= CHARACTER_TOKENS_MAX


async def test_a_grammar_too_large_for_it_is_blamed_on_the_schema(engine: Engine) -> None:
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 1000000}'
    wanted = Format(kind=Format.KIND_JSON_SCHEMA, schema_json=schema)
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(ask("Hi", response_format=wanted), request_id="a"))
    assert [v.field for v in caught.value.violations] == ["input.response_format.schema_json"]
