"""Finds, routes and delivers alerts for as long as the process lives.

Each alert becomes one event of this process's telemetry and one delivery for each webhook. The
event is emitted after the commit that says so: a process killed in between loses it, never repeats
it.

A webhook gets each message id once. There is one exception, which no protocol over HTTP can close:
where a process died (or lost its database for longer than the lease) between the POST and the
commit, whether it arrived is unknown, and it is sent again with the same `webhook-id`, by which the
receiver knows the repeat.

A webhook that is added gets the alerts from then on; one that is removed gets no more, and what was
on its way to it stays as it is.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from penstock.core import errors
from penstock.core.clock import Clock
from penstock.core.telemetry import Telemetry
from penstock.quota.alerts import event
from penstock.quota.alerts.alert import Answer, Claim
from penstock.quota.alerts.alert_store import CLAIMED_MAX, LEASE_SECONDS, ROUTED_MAX, AlertStore
from penstock.quota.alerts.backoff import TRIES_MAX, delay_ms
from penstock.quota.alerts.config import Webhook
from penstock.quota.alerts.evaluator import Evaluator
from penstock.quota.alerts.post import POST_SECONDS, Poster

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two looks for what is due. A NOTIFY of each alert would serialise commits."""
EVALUATE_SECONDS = 60.0
"""Between two looks whether a check is due; how often it is due, the database knows."""
FINISH_RETRY_SECONDS = 0.5
STOP_SECONDS = POST_SECONDS + 1
"""POSTs that are under way at SIGTERM may end; nothing new begins."""


class Alerts:
    """One process's part. `start`, then `stop`, then `aclose`."""

    def __init__(
        self,
        store: AlertStore,
        evaluator: Evaluator,
        poster: Poster,
        clock: Clock,
        webhooks: tuple[Webhook, ...],
        chance: Callable[[], float],
        telemetry: Telemetry | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        evaluate_seconds: float = EVALUATE_SECONDS,
    ) -> None:
        self._store = store
        self._evaluator = evaluator
        self._poster = poster
        self._clock = clock
        self._webhooks = webhooks
        self._chance = chance
        self._telemetry = telemetry
        self._poll_seconds = poll_seconds
        self._evaluate_seconds = evaluate_seconds
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._repeat(self._evaluate, self._evaluate_seconds)),
            asyncio.create_task(self._repeat(self.route, self._poll_seconds)),
            # One for each: a slow receiver holds up its own alerts only.
            *(
                asyncio.create_task(
                    self._repeat(functools.partial(self.deliver, webhook), self._poll_seconds)
                )
                for webhook in self._webhooks
            ),
        ]

    async def stop(self) -> None:
        """What is being sent ends and is written down."""
        self._stopping.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def aclose(self) -> None:
        """After the stop, and after the last TestAlerts, which has the same connections."""
        await self._poster.aclose()

    async def route(self) -> bool:
        """Puts new alerts on their way; whether there may be more."""
        alerts = await self._store.route(self._webhooks)
        for alert in alerts:
            event.tell(alert, self._telemetry)
        return len(alerts) == ROUTED_MAX

    async def deliver(self, webhook: Webhook) -> bool:
        """Tries what is due for one webhook; whether there may be more."""
        began = self._clock.monotonic_seconds()
        claims = await self._store.claim(webhook)
        lease_ends = began + LEASE_SECONDS
        await asyncio.gather(*(self._try(claim, webhook, lease_ends) for claim in claims))
        return len(claims) == CLAIMED_MAX

    async def _try(self, claim: Claim, webhook: Webhook, lease_ends: float) -> None:
        if claim.tries > TRIES_MAX:
            # The last try's process died in it.
            answer = Answer(0, "the last try did not end", 0.0)
        elif self._clock.monotonic_seconds() > lease_ends - POST_SECONDS:
            # The process slept; by the POST's end another may be at it.
            return
        else:
            answer = await self._poster.post(claim.alert, webhook, claim.message_id)
        delay = None
        if not answer.is_final:
            delay = delay_ms(claim.tries, self._chance(), answer.retry_after_seconds)
        if answer.error:
            logger.warning(
                "%s did not reach %s (try %d, %s): %s", claim.alert.ref, webhook.host, claim.tries,
                "given up" if delay is None else f"again in {delay // 1000} s", answer.error,
            )  # fmt: skip
        await self._finish(claim, answer, delay, lease_ends)

    async def _finish(
        self, claim: Claim, answer: Answer, delay: int | None, lease_ends: float
    ) -> None:
        """Tries to write it as long as the lease lasts: what is not written is sent again."""
        while True:
            try:
                await self._store.finish(claim, answer, delay)
                return
            except errors.Unavailable:
                if self._clock.monotonic_seconds() > lease_ends:
                    raise
            await asyncio.sleep(FINISH_RETRY_SECONDS)

    async def _evaluate(self) -> bool:
        await self._evaluator.run()
        return False

    async def _repeat(self, step: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Until the stop: again at once where there may be more, else after a while."""
        while not self._stopping.is_set():
            more = False
            try:
                more = await step()
            except errors.Unavailable:
                pass  # health tells it; the next look finds it back
            except Exception:
                logger.exception("an alert's step failed")
            if not more:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), seconds)
