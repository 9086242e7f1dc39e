"""A streamed answer."""

from collections.abc import Awaitable, Callable
from typing import Any, Self

import grpc

from penstock.client.reply import Piece, Reply
from penstock.client.retry import Retry, repeated
from penstock.core.errors import StreamBroken
from penstock.core.status import from_rpc_error
from penstock.router.v1.router_pb2 import GenerateResponse, GenerateStreamResponse
from penstock.type.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    Choice,
    ChoiceDelta,
    ContentPart,
    Message,
    ToolCall,
)

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
        self._choices: dict[int, _Growing] = {}
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
        for delta in message.deltas:
            self._choices.setdefault(delta.index, _Growing()).add(delta)
        if message.HasField("receipt"):
            self._reply = Reply(
                GenerateResponse(
                    choices=[one.choice(i) for i, one in sorted(self._choices.items())],
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


class _Growing:
    """One choice as its pieces come."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._rest = Choice()

    def add(self, delta: ChoiceDelta) -> None:
        self._text.append(delta.content)
        self._refusal.append(delta.refusal)
        self._rest.logprobs.extend(delta.logprobs)
        if delta.finish_reason:
            self._rest.finish_reason = delta.finish_reason
        for piece in delta.tool_calls:
            call = self._calls.setdefault(piece.index, ToolCall())
            call.id = call.id or piece.id
            call.name += piece.name
            call.arguments_json += piece.arguments_json

    def choice(self, index: int) -> Choice:
        content = [ContentPart(text=text)] if (text := "".join(self._text)) else []
        if refusal := "".join(self._refusal):
            content.append(ContentPart(refusal=refusal))
        calls = [call for _, call in sorted(self._calls.items())]
        message = Message(role=ROLE_ASSISTANT, content=content, tool_calls=calls)
        return Choice(
            index=index,
            message=message,
            finish_reason=self._rest.finish_reason,
            logprobs=self._rest.logprobs,
        )


def _message(read: object) -> GenerateStreamResponse | None:
    """What was read; None: the end."""
    return read if isinstance(read, GenerateStreamResponse) else None
