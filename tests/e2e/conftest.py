"""The whole of Penstock on this machine, as `make up PAID=stand-in` starts it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest
import pytest_asyncio

from penstock.cli.options import DEFAULT_CONFIG
from penstock.core.channel import bearer, connect
from penstock.core.ports import free_ports
from penstock.router.v1.router_pb2 import GenerateRequest, GenerateResponse
from penstock.router.v1.router_pb2_grpc import RouterServiceStub
from penstock.type.v1.chat_pb2 import ROLE_USER, ChatInput, ContentPart, Message

PENSTOCK = Path(sys.executable).parent / "penstock"
MARK = "STACK_UNDER_TEST"
"""In the environment of every process of the stack."""
PAID_SIDE = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
START_SECONDS = 300
STOP_SECONDS = 240
"""More than `down` itself waits before it kills: a busy machine is no fault."""


@dataclass(frozen=True)
class Key:
    id: str
    secret: str


@dataclass(frozen=True)
class Stack:
    state: Path

    @property
    def env(self) -> dict[str, str]:
        lines = (self.state / "env").read_text().splitlines()
        return {k: "".join(shlex.split(v)) for k, _, v in (line.partition("=") for line in lines)}

    @property
    def own(self) -> list[str | Path]:
        """The program and its state folder."""
        return [PENSTOCK, "--state", str(self.state)]

    @property
    def config(self) -> Path:
        return self.state.parent / "penstock.yaml"

    def configure(self, *, n_max: object) -> None:
        """Puts the example with another limit into place."""
        self.config.write_text(DEFAULT_CONFIG.read_text().replace("n_max: 8", f"n_max: {n_max}"))

    def command(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.own, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """What the CLI says with --json."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr or done.stdout
        return json.loads(done.stdout)

    def new_key(self, name: str, *, budget_usd: str) -> Key:
        """A key with a total budget of its own."""
        made = self.json("keys", "create", name)
        key = Key(made["key"]["id"], made["secret"])
        limit = ("--account", key.id, "--window", "total", "--name", f"{name}-total")
        self.json("budget", "set", budget_usd, *limit)
        return key

    def usage(self, key_id: str) -> list[dict[str, Any]]:
        """The key's rows of `penstock usage`, one a model."""
        return [row for row in self.json("usage")["rows"] if row["key_id"] == key_id]

    def pid(self, service: str) -> int:
        parts = self.json("status")["parts"]
        return next(int(p["pid"]) for p in parts if p["name"] == service)

    def processes(self) -> list[psutil.Process]:
        """Whatever was started for this state folder, and by it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.state):
                    found.append(process)
        return found


def environment(state: Path) -> dict[str, str]:
    """Of an `up`. The user's own key must neither be used nor be needed by a test."""
    grpc_port, http_port = free_ports(2)
    return {
        **{name: value for name, value in os.environ.items() if name not in PAID_SIDE},
        MARK: str(state),
        "PENSTOCK_GRPC_PORT": str(grpc_port),
        "PENSTOCK_HTTP_PORT": str(http_port),
    }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("stack") / "state")
    found.configure(n_max=8)
    started = subprocess.run(
        [*found.own, "up", "--paid", "stand-in", "--detach"],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        env=environment(found.state) | {"PENSTOCK_CONFIG": str(found.config)},
    )
    assert started.returncode == 0, started.stdout + started.stderr
    yield found
    put_away(found)


def put_away(stack: Stack) -> None:
    stack.command("down", timeout=STOP_SECONDS)
    assert stack.processes() == []
    # What PostgreSQL keeps outside the folder, where it runs as another user, goes with it.
    assert stack.command("clean").returncode == 0


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Stack]:
    """One that a test starts by itself; no stand-in, a folder with a space in its name."""
    found = Stack(tmp_path / "a state")
    yield found
    put_away(found)


@pytest.fixture
def up_environment(idle: Stack) -> dict[str, str]:
    return environment(idle.state)


@pytest_asyncio.fixture
async def router(stack: Stack) -> AsyncIterator["Caller"]:
    async with connect(stack.env["PENSTOCK_GRPC"]) as channel:
        yield Caller(channel, stack.env["PENSTOCK_API_KEY"])


@dataclass(frozen=True)
class Caller:
    """A gRPC client with a key."""

    channel: grpc.aio.Channel
    key: str

    def with_key(self, key: str) -> "Caller":
        return Caller(self.channel, key)

    @property
    def stub(self) -> RouterServiceStub:
        return RouterServiceStub(self.channel)

    async def generate(self, text: str, *, model: str = "auto", **fields: Any) -> GenerateResponse:
        return await self.stub.Generate(
            ask(text, model=model, **fields), metadata=(bearer(self.key),), timeout=60
        )

    def stream(self, text: str, *, model: str = "auto", **fields: Any) -> Any:
        return self.stub.GenerateStream(
            ask(text, model=model, **fields), metadata=(bearer(self.key),), timeout=60
        )


def ask(text: str, *, model: str, **fields: Any) -> GenerateRequest:
    message = Message(role=ROLE_USER, content=[ContentPart(text=text)])
    fields.setdefault("max_tokens", 24)
    return GenerateRequest(model=model, input=ChatInput(messages=[message], **fields))


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    env = stack.env
    with openai.OpenAI(
        base_url=env["PENSTOCK_HTTP"], api_key=env["PENSTOCK_API_KEY"], max_retries=0
    ) as client:
        yield client
