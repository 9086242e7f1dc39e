"""Headers without an end: what a stranger can make the router keep is bounded."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from penstock.router.http.protocol import HEAD_BYTES_MAX
from penstock.router.http.server import HttpServer

START = b"POST / HTTP/1.1\r\nhost: here\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n"
MEGABYTE = b"a" * 1024 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def length_of(request: Request) -> Response:
    try:
        return PlainTextResponse(str(len(await request.body())))
    except ClientDisconnect:
        return Response()


async def send(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    app = Starlette(routes=[Route("/", length_of, methods=["POST"])])
    found = HttpServer("127.0.0.1:0", app, drain_seconds=0)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def streams(server: HttpServer) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    yield reader, writer
    writer.close()


@pytest.mark.parametrize(
    "head",
    [
        START + b"x: ".ljust(HEAD_BYTES_MAX, b"a"),
        START + b"".join(b"x-%05d: a\r\n" % n for n in range(HEAD_BYTES_MAX // 12)),
        b"POST /".ljust(HEAD_BYTES_MAX + 1, b"a"),
    ],
    ids=["long", "many", "path"],
)
async def test_head_over_the_limit_is_refused_before_it_ends(streams: Streams, head: bytes) -> None:
    reader, writer = streams
    writer.write(head)
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "REQUEST_TOO_LARGE" == told["penstock"]["reason"]
    assert str(HEAD_BYTES_MAX) in told["error"]["message"]


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (START, b"x: " + MEGABYTE + b"\r\n"),
        (START + b"x: ", MEGABYTE),
        (CHUNKED + b"0\r\n", b"x: " + MEGABYTE + b"\r\n"),
        (CHUNKED + b"1;", MEGABYTE),
    ],
    ids=["headers", "a header", "trailers", "an extension of a chunk"],
)
async def test_no_stranger_sends_200_megabytes_of_them(
    streams: Streams, start: bytes, piece: bytes
) -> None:
    _, writer = streams
    writer.write(start)
    with pytest.raises(ConnectionError):
        await send(writer, [piece] * 200)


@pytest.mark.parametrize(
    ("sent", "length"),
    [
        (START + b"content-length: 2\r\nx: ".ljust(60_000, b"a") + b"\r\n\r\nab", 2),
        (START + b"content-length: 1048576\r\n\r\n" + MEGABYTE, 1024 * 1024),
        (CHUNKED + b"1\r\nb\r\n" * 100_000 + b"0\r\n\r\n", 100_001),
        (CHUNKED + b"0\r\nx: trailer\r\n\r\n", 1),
    ],
    ids=["near the limit", "long body", "body in pieces", "trailer"],
)
async def test_bodies_are_not_counted(streams: Streams, sent: bytes, length: int) -> None:
    reader, writer = streams
    for _ in range(2):
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert str(length).encode() == await reader.readexactly(len(str(length)))
