import asyncio
import logging

import httpx
import pytest

from penstock.quota.alerts.config import Webhook
from penstock.quota.alerts.post import Poster
from support.alerts import an_alert
from support.clock import HandClock

TO = Webhook("https://hooks.example/services/hidden-path", "slack", "hooks.example")


async def _answer(handler: object, *, post_seconds: float = 5) -> tuple[int, str, int | None]:
    poster = Poster(
        (), HandClock(), post_seconds=post_seconds,
        transport=httpx.MockTransport(handler),  # type: ignore[arg-type]
    )  # fmt: skip
    answer = await poster.post(an_alert("test"), TO, "ab")
    await poster.aclose()
    return answer.status, answer.error, answer.retry_after_seconds


@pytest.mark.parametrize(
    ("status", "error"),
    [(200, ""), (204, ""), (299, ""), (302, "HTTP 302"), (404, "HTTP 404"), (500, "HTTP 500")],
)
async def test_only_a_2xx_takes_it(status: int, error: str) -> None:
    got = await _answer(lambda _: httpx.Response(status, text="hidden words of the receiver"))
    assert (status, f"it answered {error}" if error else "", None) == got


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (httpx.ConnectError("hidden"), "it cannot be reached"),
        (httpx.ReadTimeout("hidden"), "it did not answer within 5 s"),
        (httpx.RemoteProtocolError("hidden"), "the request failed (RemoteProtocolError)"),
    ],
)
async def test_what_the_network_does_is_told_without_its_words(
    raised: Exception, error: str
) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise raised

    assert (0, error, None) == await _answer(handler)


async def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    async def handler(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    assert (0, "it did not answer within 0.05 s", None) == await _answer(handler, post_seconds=0.05)


async def test_a_body_without_end_is_not_read() -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            while True:
                raise AssertionError
                yield b""

    assert (200, "", None) == await _answer(lambda _: httpx.Response(200, stream=Endless()))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("", None)],
)
async def test_retry_after_is_read_in_seconds(text: str, seconds: int | None) -> None:
    got = await _answer(lambda _: httpx.Response(503, headers={"retry-after": text}))
    assert (503, "it answered HTTP 503", seconds) == got


async def test_no_address_is_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await _answer(lambda _: httpx.Response(500))
    assert "hidden-path" not in caplog.text
