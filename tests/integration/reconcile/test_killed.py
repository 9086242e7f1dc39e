"""A quota process that is killed in the middle of a reconciliation."""

import asyncio
from pathlib import Path

import grpc
import pytest

from support.ledger import Ledger
from support.quota_process import ADMIN, QuotaProcess, quota_process
from support.reconciliation import World, drifts, messages, options, random_world


async def killed_after(days_done: int, running: QuotaProcess, world: World, call: object) -> None:
    """While the day after those is being done."""
    done = 0
    async for answer in call:  # type: ignore[attr-defined]
        done += answer.rows_done > 0
        if answer.rows_total == len(world.export()) and done == days_done:
            running.process.kill()
            await running.process.wait()


@pytest.mark.parametrize("days_done", range(3))
async def test_killed_and_run_again_it_ends_as_if_nothing_had_been(
    ledger: Ledger, days_done: int, tmp_path: Path
) -> None:
    day = ledger.now.date()
    world = await random_world(ledger, days_done, attempts=240)
    request = options(day, world.today)
    async with quota_process(ledger.dsn, tmp_path) as first:
        call = first.admin.Reconcile(messages(request, world.export()), metadata=ADMIN)
        with pytest.raises(grpc.aio.AioRpcError):
            await killed_after(days_done, first, world, call)
    assert (await ledger.audit()).ok
    assert 0 < (await world.standing())[1] or days_done == 2
    async with quota_process(ledger.dsn, tmp_path) as second, asyncio.timeout(60):
        call = second.admin.Reconcile(messages(request, world.export()), metadata=ADMIN)
        answers = [answer async for answer in call]
    assert {} == drifts(answers[-1].report)
    assert (sum(world.billed.values()), 0) == (await world.standing())[:2]
