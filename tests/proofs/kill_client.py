"""A router-like process under load: the real `QuotaLedger` over the real stream.

What the ledger has acknowledged is written down, so that it can be asked for afterwards:
`settled <id> <amount>` and `held <id> <amount>`, one line each.

    python -m proofs.kill_client ADDRESS KEYS PROVIDER JOURNAL SEED START
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from penstock.core.channel import connect
from penstock.core.deadline import Deadline
from penstock.core.errors import PenstockError, Unavailable
from penstock.core.ids import uuid7
from penstock.quota.v1 import quota_pb2
from penstock.router.ledger import QuotaLedger

TASKS = 24
HOLD_MS = 4_000
"""So short that what a killed process held expires within the proof."""
AWAY_SECONDS = 0.05


class Load:
    def __init__(
        self,
        ledger: QuotaLedger,
        keys: list[int],
        provider: str,
        journal: Path,
        rng: random.Random,
    ) -> None:
        self.ledger = ledger
        self.keys = keys
        self.provider = provider
        self.journal = journal.open("a", buffering=1)
        self.rng = rng
        self.stopping = False

    async def run(self) -> None:
        await asyncio.gather(*(self._task() for _ in range(TASKS)))

    async def _task(self) -> None:
        while not self.stopping:
            try:
                await self._attempt()
            except Unavailable:
                await asyncio.sleep(AWAY_SECONDS)
            except PenstockError:
                # Refused: its budget is full until something is given back.
                await asyncio.sleep(0)

    async def _attempt(self) -> None:
        rng, id_ = self.rng, uuid7()
        key_id = f"key_{rng.choice(self.keys)}"
        amount = rng.randrange(1, 200)
        reserve = quota_pb2.ReserveRequest(
            reservation_id=id_,
            request_id=f"req_{id_}",
            attempt=1,
            key_id=key_id,
            pool=rng.choice([quota_pb2.POOL_KIND_LOCAL, quota_pb2.POOL_KIND_PAID]),
            provider=self.provider,
            model="gpt-4o-mini",
            amount_nano_usd=amount,
            tokens=10,
            ttl_ms=HOLD_MS,
        )
        await self.ledger.reserve(reserve, Deadline.after(3))
        self.journal.write(f"held {id_} {amount}\n")
        if rng.random() < 0.3:
            more = quota_pb2.ExtendRequest(
                reservation_id=id_,
                amount_nano_usd=amount + 50,
                tokens=20,
                ttl_ms=HOLD_MS,
                key_id=key_id,
            )
            try:
                await self.ledger.extend(more, Deadline.after(3))
                amount += 50
            except PenstockError:
                pass
        if rng.random() < 0.1:
            void = quota_pb2.VoidRequest(reservation_id=id_, reason="CANCELLED", key_id=key_id)
            await self.ledger.void(void)
            return
        used = rng.randrange(amount + 1)
        settle = quota_pb2.SettleRequest(
            reservation_id=id_, amount_nano_usd=used, outcome="ok", key_id=key_id
        )
        if await self.ledger.settle(settle):
            self.journal.write(f"settled {id_} {used}\n")


async def main() -> None:
    address, keys, provider, journal, seed, start = sys.argv[1:]
    channel = connect(address)
    ledger = QuotaLedger(channel, os.environ["PENSTOCK_SERVICE_TOKEN"])
    rng = random.Random(f"{seed}:{start}")
    key_ids = [int(key) for key in keys.split(",")]
    load = Load(ledger, key_ids, provider, Path(journal), rng)

    def stop() -> None:
        load.stopping = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await load.run()
    left = await ledger.drain(10)
    await channel.close()
    sys.exit(1 if left or ledger.refused_count else 0)


if __name__ == "__main__":
    asyncio.run(main())
