"""Resolves abandoned holds that no reserve has met, so that figures are fresh.

Nothing depends on it.
"""

import asyncio
import logging

from penstock.core import errors
from penstock.quota.store.ledger_store import LedgerStore

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0


async def sweep_for_ever(ledger: LedgerStore) -> None:
    """One process's sweeper; several may run at once."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await ledger.sweep()
        except errors.Unavailable:
            continue
        except Exception:
            logger.exception("sweeping expired holds failed")
