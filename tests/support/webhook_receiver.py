"""A real HTTP receiver of webhooks that answers as told and remembers what came."""

import asyncio
import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HANG = 0
"""An answer that never comes."""


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def is_signed_by(self, secret: bytes) -> bool:
        """As a receiver would check it, in its own words."""
        signed = b".".join(
            [self.id.encode(), self.headers["webhook-timestamp"].encode(), self.body]
        )
        expected = "v1," + b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        return expected in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """`answers` are used up in order; then it answers 204."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    extra_head: str = ""
    gate: asyncio.Event | None = None
    """No answer before it is set."""
    received: list[Received] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/secret-path"

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.received]

    async def until(self, count: int, timeout_seconds: float = 20) -> None:
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): value
                for name, value in (line.split(": ", 1) for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            answer = self.answers.pop(0) if self.answers else 204
            async with self._changed:
                self.received.append(Received(head[0].split(" ")[1], headers, body))
                self._changed.notify_all()
            if self.gate is not None:
                await self.gate.wait()
            if answer == HANG:
                await reader.read()  # until the sender goes away
                return
            writer.write(
                f"HTTP/1.1 {answer} X\r\n{self.extra_head}content-length: 0\r\n"
                "connection: close\r\n\r\n".encode()
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(*answers: int) -> AsyncIterator[Receiver]:
    running = Receiver(answers=list(answers))
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
