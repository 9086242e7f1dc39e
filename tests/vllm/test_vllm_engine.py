"""What only vLLM does: forced tool calls, and no process left behind when its parent is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import jsonschema
import psutil
import pytest
import pytest_asyncio

from contract.engine.asking import ask, collect
from contract.engine.rigs import RIGS
from penstock.core.errors import InvalidRequest
from penstock.local.engines.base import Engine
from penstock.type.v1 import chat_pb2

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    # torch and vLLM warn about their own code.
    pytest.mark.filterwarnings("default"),
]

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}},
    "required": ["city"],
    "additionalProperties": False,
}

PARENT = """\
import asyncio
from contract.engine.rigs import RIGS


async def main():
    engine = RIGS["vllm"].create()
    await engine.start()
    print("started", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
"""
ENDS_SECONDS = 15
"""A scheduler process that finds its worker gone takes some seconds to give up."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    engine = RIGS["vllm"].create()
    await engine.start()
    yield engine
    await engine.close()


def weather(**choice: object) -> chat_pb2.ChatInput:
    chat = ask("What is the weather in Rome?", max_tokens=64)
    chat.tools.add(
        name="get_weather", description="of a city", parameters_json=json.dumps(PARAMETERS)
    )
    chat.tools.add(name="get_time", parameters_json=json.dumps(PARAMETERS))
    chat.tool_choice.CopyFrom(chat_pb2.ToolChoice(**choice))
    return chat


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"mode": chat_pb2.ToolChoice.MODE_REQUIRED}, {"get_weather", "get_time"}),
        ({"function_name": "get_time"}, {"get_time"}),
    ],
    ids=["required", "named"],
)
async def test_a_demanded_call_is_made_and_fits_its_schema(
    engine: Engine, choice: dict, names: set[str]
) -> None:
    answer = await collect(engine.generate(weather(**choice), request_id="a"))
    pieces = [call for piece in answer.pieces() for call in piece.tool_calls]
    assert pieces[0].id
    assert pieces[0].name in names
    jsonschema.validate(json.loads("".join(p.arguments_json for p in pieces)), PARAMETERS)
    assert answer.text() == ""
    assert answer.finish_reason() == chat_pb2.FINISH_REASON_TOOL_CALLS


async def test_a_demand_for_a_tool_that_is_not_there_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.generate(weather(function_name="tide"), request_id="a"))
    assert caught.value.violations[0].field == "input.tool_choice.function_name"


async def test_several_greedy_choices_are_the_same(engine: Engine) -> None:
    chat = ask("Write one sentence about the sea.", n=2, max_tokens=6)
    answer = await collect(engine.generate(chat, request_id="a"))
    assert answer.usage.completion_tokens == 12
    assert answer.text(0) == answer.text(1)


@pytest.mark.parametrize(
    "fields",
    [{"logit_bias": {10**8: 1.0}}, {"temperature": -1.0}, {"reasoning_effort": "low"}, {"n": 5}],
    ids=["unknown token", "temperature", "reasoning", "more choices than slots"],
)
async def test_what_vllm_cannot_do_is_refused(engine: Engine, fields: dict) -> None:
    with pytest.raises(InvalidRequest):
        await collect(engine.generate(ask("Hi", **fields), request_id="a"))
    assert engine.stats().running == 0


async def test_no_process_outlives_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"started\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=ENDS_SECONDS)
    for process in alive:
        process.kill()
    assert alive == []
