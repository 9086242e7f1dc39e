"""How a deployment is asked for, of an HTTP server that answers as a head of Ray does."""

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock.local import serve_api
from penstock.local.serve_api import DeployFailed, RestServeApi

TRACEBACK = "Traceback (most recent call last):\n" + "  in Ray\n" * 1_000 + "RuntimeError: GCS away"


class Head:
    """Answers by turns, the last one for ever."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                head.asked.append(self.rfile.read(int(self.headers["content-length"])))
                status, text = head.answers[0] if len(head.answers) == 1 else head.answers.pop(0)
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    found = Head(*request.param)
    found.thread.start()
    yield found
    found.server.shutdown()
    found.thread.join()
    found.server.server_close()


async def deploy(head: Head) -> float:
    """How many seconds it took, by a clock that only sleeping moves."""
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    url = f"http://127.0.0.1:{head.server.server_address[1]}"
    api = RestServeApi(url, "token", monotonic=lambda: now[0], sleep=sleep)
    try:
        await api.deploy([])
    finally:
        await api.close()
    return now[0]


@pytest.mark.parametrize("head", [[(500, TRACEBACK), (503, ""), (200, "")]], indirect=True)
async def test_a_head_that_fails_by_itself_is_asked_the_same_again(head, caplog):
    assert 2 * serve_api.RETRY_SECONDS == await deploy(head)

    assert 3 == len(head.asked)
    assert 1 == len(set(head.asked))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("Ray Serve answers 500: RuntimeError: GCS away\n")
    assert first.endswith("RuntimeError: GCS away")
    assert len(first) < serve_api.TAIL_CHARACTERS + 100
    assert second.startswith("Ray Serve answers 503: nothing more")


@pytest.mark.parametrize("head", [[(500, TRACEBACK)]], indirect=True)
async def test_one_that_goes_on_failing_is_given_up_after_the_start_time(head, caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(DeployFailed, match=r"^Ray Serve answers 500: RuntimeError: GCS away$"):
        await deploy(head)

    assert serve_api.DEPLOY_SECONDS / serve_api.RETRY_SECONDS + 1 == len(head.asked)


@pytest.mark.parametrize("head", [[(400, "1 validation error")]], indirect=True)
async def test_a_configuration_that_is_refused_is_not_asked_for_again(head):
    with pytest.raises(DeployFailed, match=r"^Ray Serve answers 400: 1 validation error$"):
        await deploy(head)

    assert 1 == len(head.asked)


async def test_one_that_does_not_answer_is_given_up_too():
    head = Head((200, ""))
    head.server.server_close()
    with pytest.raises(DeployFailed, match="Ray's API does not answer"):
        await deploy(head)
