"""uvicorn's HTTP protocol, with a bound on what a stranger can make it keep."""

import logging

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from penstock.core.errors import InvalidRequest
from penstock.router.http.errors import body_of, status_of

logger = logging.getLogger(__name__)

_HEAD = b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"

HEAD_BYTES_MAX = 64 * 1024
"""Of a request's line and headers, and of trailers: whatever is kept before anybody's key is known.
Clients send a few KiB. What came with the last read is taken beyond it.
"""


class BoundedProtocol(HttpToolsProtocol):
    """httptools gathers headers and trailers of any length; this one hangs up."""

    _gathered_bytes = 0
    """Came since the parser handed something on."""

    def data_received(self, data: bytes) -> None:
        self._gathered_bytes += len(data)
        super().data_received(data)
        if self._gathered_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        self._gathered_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gathered_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._gathered_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        logger.warning("%s sends headers of over %d bytes", self.client, HEAD_BYTES_MAX)
        # In the midst of an answer, to what came before, nothing else can be said.
        if self.cycle is None or self.cycle.response_complete:
            error = InvalidRequest(
                f"the headers have over {HEAD_BYTES_MAX} bytes; send fewer, or shorter ones",
                reason="REQUEST_TOO_LARGE",
            )
            body = msgspec.json.encode(body_of(error, ""))
            head = _HEAD % (STATUS_LINE[status_of(error)], len(body))
            self.transport.write(head + body)
        self.transport.close()
