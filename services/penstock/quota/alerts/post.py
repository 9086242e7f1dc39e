"""One POST to one webhook."""

import asyncio
import logging
from collections.abc import Sequence

import httpx

from penstock.core.clock import Clock
from penstock.quota.alerts import shapes
from penstock.quota.alerts.alert import Alert, Answer
from penstock.quota.alerts.config import Webhook

POST_SECONDS = 15.0
"""For all of it; the lower end of what Standard Webhooks advises: a receiver answers first."""
CONNECT_SECONDS = 5.0

# They tell each request with its address, which may hold a secret.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Poster:
    """Sends alerts. Follows no redirect, keeps no cookie, reads only the head of an answer."""

    def __init__(
        self,
        secrets: Sequence[bytes],
        clock: Clock,
        *,
        post_seconds: float = POST_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._secrets = secrets
        self._clock = clock
        self._post_seconds = post_seconds
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            timeout=httpx.Timeout(post_seconds, connect=min(CONNECT_SECONDS, post_seconds)),
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def post(self, alert: Alert, webhook: Webhook, message_id: str) -> Answer:
        """Never raises for what the network or the receiver does."""
        began = self._clock.monotonic_seconds()
        content = shapes.body(alert, webhook.shape)
        head = shapes.headers(message_id, int(self._clock.unix_seconds()), content, self._secrets)
        status, error, retry_after = 0, "", None
        try:
            async with (
                asyncio.timeout(self._post_seconds),
                self._client.stream("POST", webhook.url, content=content, headers=head) as response,
            ):
                status = response.status_code
                retry_after = _retry_after(response.headers.get("retry-after", ""))
                if not 200 <= status <= 299:
                    error = f"it answered HTTP {status}"
        except (TimeoutError, httpx.TimeoutException):
            error = f"it did not answer within {self._post_seconds:g} s"
        except httpx.ConnectError:
            error = "it cannot be reached"
        except (httpx.HTTPError, httpx.InvalidURL) as failed:
            # The text may quote the address.
            error = f"the request failed ({type(failed).__name__})"
        finally:
            self._client.cookies.clear()
        if status and 200 <= status <= 299:
            # Its head came: it took the alert, whatever became of the connection after.
            error = ""
        return Answer(status, error, self._clock.monotonic_seconds() - began, retry_after)


def _retry_after(text: str) -> int | None:
    """Seconds; a date, which would need agreeing clocks, is not read."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
