"""A streamed answer."""

from collections.abc import Awaitable, Callable
from typing import Any, Self

import grpc

from penstock.client.reply import Piece, Reply
from penstock.client.retry import Retry, repeated
from penstock.core.assemble import Assembler
from penstock.core.errors import StreamBroken
from penstock.core.status import from_rpc_error
from penstock.router.v1.router_pb2 import GenerateResponse, GenerateStreamResponse

Open = Callable[[float | None], Any]
"""Begins the call with a deadline in seconds."""


class Stream:
    """Iterate over it for pieces; `reply` is the whole once it has ended.

    Use it in `async with`: leaving it stops the model at once.
    """

    def __init__(self, begin: Open, retry: Retry, timeout_seconds: float | None) -> None:
        self._begin = begin
        self._retry = retry
        self._timeout_seconds = timeout_seconds
        self._call: Any = None
        self._answer = Assembler()
        self._reply: Reply | None = None
        self._created_unix_seconds = 0
        self.request_id = ""
        """Known with the first piece; so are the next two."""
        self.provider = ""
        self.model = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            PenstockError: before the first piece after the retries, later at once.
        """
        while True:
            message = await self._read()
            if message is None:
                if self._reply is None:
                    raise StreamBroken("the stream ended before the answer did")
                raise StopAsyncIteration
            self._take(message)
            if message.deltas:
                return Piece(message.deltas)

    async def _read(self) -> GenerateStreamResponse | None:
        if self._call is None:
            return await repeated(self._first, self._retry, self._timeout_seconds)
        try:
            return _message(await self._call.read())
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def _first(self, left_seconds: float | None) -> Awaitable[GenerateStreamResponse | None]:
        async def first() -> GenerateStreamResponse | None:
            call = self._begin(left_seconds)
            try:
                message = _message(await call.read())
            except BaseException:
                call.cancel()
                raise
            self._call = call
            return message

        return first()

    def _take(self, message: GenerateStreamResponse) -> None:
        if message.request_id:
            self.request_id = message.request_id
            self.provider, self.model = message.provider, message.model
            self._created_unix_seconds = message.created_unix_seconds
        self._answer.add(message.deltas)
        if message.HasField("receipt"):
            self._reply = Reply(
                GenerateResponse(
                    choices=self._answer.choices(),
                    usage=message.usage,
                    receipt=message.receipt,
                    created_unix_seconds=self._created_unix_seconds,
                )
            )

    @property
    def reply(self) -> Reply:
        """The whole answer with its cost; there once the stream has ended."""
        if self._reply is None:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return self._reply

    def cancel(self) -> None:
        """Stops the model; does nothing after the end."""
        if self._call is not None:
            self._call.cancel()


def _message(read: object) -> GenerateStreamResponse | None:
    """What was read; None: the end."""
    return read if isinstance(read, GenerateStreamResponse) else None
