"""A start that is interrupted, a terminal that goes away: what runs ends in order, all of it."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from typing import TextIO

import grpc
import pytest

from penstock.cli import lock
from penstock.cli.state import State
from penstock.core.channel import bearer, connect
from penstock.router.v1.router_pb2 import GenerateRequest
from penstock.router.v1.router_pb2_grpc import RouterServiceStub
from penstock.type.v1.chat_pb2 import ROLE_USER, ChatInput, ContentPart, Message
from support.wait import until

pytestmark = pytest.mark.e2e

BOUND_SECONDS = 120


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_detached_start_that_is_interrupted_is_taken_back(idle, up_environment, how):
    state = State.at(idle.state)
    command = await asyncio.create_subprocess_exec(
        *idle.own, "up", "--detach", env=up_environment, stdout=DEVNULL, stderr=PIPE
    )
    await until(state.processes.exists, BOUND_SECONDS)
    command.send_signal(how)
    _, told = await command.communicate()
    await until(lambda: not idle.processes(), BOUND_SECONDS)
    assert "it is taken back" in state.log("up").read_text()
    assert lock.holder(state) is None
    if how == signal.SIGINT:
        assert 130 == command.returncode
        assert b"Interrupted: what was begun is stopped" in told


def long_request() -> GenerateRequest:
    """It takes seconds, and also on a busy machine less than the router's drain."""
    text = ContentPart(text="Tell a long story.")
    messages = [Message(role=ROLE_USER, content=[text])]
    return GenerateRequest(model="auto", input=ChatInput(messages=messages, max_tokens=100))


async def line_of(told: TextIO, words: str) -> None:
    while words not in (line := await asyncio.to_thread(told.readline)):
        assert line


async def test_a_terminal_that_goes_away_stops_all_in_order_and_breaks_no_stream(
    idle, up_environment
):
    reader, writer = os.pipe()
    up = await asyncio.create_subprocess_exec(*idle.own, "up", env=up_environment, stdout=writer)
    os.close(writer)
    told = os.fdopen(reader)
    await line_of(told, "Penstock is up")
    async with connect(idle.env["PENSTOCK_GRPC"]) as channel:
        stream = RouterServiceStub(channel).GenerateStream(
            long_request(),
            metadata=(bearer(idle.env["PENSTOCK_API_KEY"]),),
            timeout=BOUND_SECONDS,
        )
        message = await stream.read()
        # A closing terminal's shell says so, and then the kernel does.
        up.send_signal(signal.SIGHUP)
        await line_of(told, "Stopping")
        told.close()
        up.send_signal(signal.SIGHUP)
        while (more := await stream.read()) is not grpc.aio.EOF:
            message = more
        assert grpc.StatusCode.OK == await stream.code()
    assert 0 == await up.wait()
    assert message.receipt.settled
    assert [] == idle.processes()
