"""A small router: what `router.ledger.QuotaLedger` promises of its side, one step at a time.

A generator instead of tasks, so that thousands run in lockstep on a clock that stands still, and
that each can be killed at each of its waits.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core.ids import uuid7_unix_ms
from penstock.quota.ledger import Answer, Extend, Operation, Pool, Reserve, Settle, Void
from penstock.quota.store.ledger_store import Outcome
from support.audited import WorldModel
from support.worlds import MODELS, OTHER_PROVIDER, TAGS

RESERVE_TRIES = 3
Attempt = Generator[Operation | None, Outcome | None, None]
"""Yields an operation to send (None: a step goes by), receives its answer, or None: none came."""


def seeded_uuid7(rng: random.Random, at: datetime) -> str:
    """As core.ids.uuid7, but of this generator's randomness: a history can be replayed."""
    ms = int(at.timestamp() * 1000)
    value = (ms << 80) | rng.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass
class Client:
    """Makes attempts in one world."""

    rng: random.Random
    world: WorldModel

    def attempt(self, now: datetime) -> Attempt:
        rng = self.rng
        skew = rng.choice([timedelta()] * 30 + [timedelta(days=-8), timedelta(days=2)])
        skew += timedelta(seconds=rng.uniform(-2, 2))
        reserve = self._reserve(seeded_uuid7(rng, now + skew))
        outcome = yield from _asked(reserve, RESERVE_TRIES)
        if reserve.pool == "cache" or (outcome is not None and not isinstance(outcome, Answer)):
            return
        void = Void(
            reserve.reservation_id, reserve.id_unix_ms, "RESERVE_ANSWER_LOST", reserve.key_id
        )
        if outcome is None:
            yield from _resolved(void)
            return
        amount, tokens = yield from self._stream(reserve)
        if rng.random() < 0.1:
            yield from _resolved(void)
        else:
            yield from _resolved(self._settle(reserve, amount, tokens))

    def _reserve(self, id_: str) -> Reserve:
        rng = self.rng
        pools: list[Pool] = ["local", "paid", "paid", "paid", "cache"]
        pool = rng.choice(pools)
        is_hit = pool == "cache"
        return Reserve(
            reservation_id=id_,
            id_unix_ms=uuid7_unix_ms(id_),
            request_id="req_1",
            attempt=1,
            key_id=rng.choice(self.world.keys),
            pool=pool,
            provider=rng.choice([*self.world.pools, OTHER_PROVIDER]),
            model=rng.choice(MODELS),
            amount_nano_usd=0 if is_hit else rng.randrange(80),
            tokens=0 if is_hit else rng.randrange(80),
            ttl_ms=rng.choice([1, 20_000, 60_000, 60_000, 86_400_000]),
            end_user="",
            tags=rng.choice(TAGS),
        )

    def _stream(
        self, reserve: Reserve
    ) -> Generator[Operation | None, Outcome | None, tuple[int, int]]:
        """Extends as it goes; what is held at the end."""
        amount, tokens = reserve.amount_nano_usd, reserve.tokens
        for _ in range(self.rng.choice([0, 0, 1, 3])):
            for _ in range(self.rng.randrange(3)):
                yield None
            more = (amount + self.rng.randrange(40), tokens + self.rng.randrange(40))
            extend = Extend(
                reserve.reservation_id, reserve.id_unix_ms, *more, 30_000, reserve.key_id
            )
            if not isinstance((yield from _asked(extend, 2)), Answer):
                break
            amount, tokens = more
        return amount, tokens

    def _settle(self, reserve: Reserve, amount: int, tokens: int) -> Settle:
        rng = self.rng
        used = rng.randrange(amount + 1)
        if rng.random() < 0.1:
            used = amount + rng.randrange(100)
        return Settle(
            reservation_id=reserve.reservation_id,
            id_unix_ms=reserve.id_unix_ms,
            amount_nano_usd=used,
            prompt_tokens=rng.randrange(tokens + 1),
            cached_prompt_tokens=0,
            completion_tokens=rng.randrange(20),
            reasoning_tokens=0,
            estimated=rng.random() < 0.2,
            outcome="ok",
            trace_id="",
            key_id=reserve.key_id,
        )


def _asked(
    operation: Operation, tries: int
) -> Generator[Operation | None, Outcome | None, Outcome | None]:
    for _ in range(tries):
        outcome = yield operation
        if outcome is not None:
            return outcome
    return None


def _resolved(operation: Operation) -> Generator[Operation | None, Outcome | None, None]:
    """Until the ledger has it, or says that it never will."""
    while (yield operation) is None:
        pass
