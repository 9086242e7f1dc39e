"""The whole way: the ledger settles, its transaction records, its processes deliver."""

import asyncio
from pathlib import Path

import pytest

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.ledger import migrated_database
from support.quota_process import (
    ADMIN,
    SERVICE,
    QuotaProcess,
    new_name,
    quota_process,
    reserve_request,
)
from support.webhook_receiver import receiver

SECRET = "a-secret-of-at-least-24-bytes"


async def _spend(quota: QuotaProcess, key_id: str, held: int, used: int) -> None:
    id_ = uuid7()
    await quota.quota.Reserve(reserve_request(id_, key_id, held), metadata=SERVICE)
    settle = quota_pb2.SettleRequest(
        reservation_id=id_, amount_nano_usd=used, outcome="ok", key_id=key_id
    )
    await quota.quota.Settle(settle, metadata=SERVICE)


async def test_each_threshold_and_overage_reaches_the_receiver_once_from_two_processes(
    postgres_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = await migrated_database(postgres_server)
    async with receiver() as to:
        monkeypatch.setenv("PENSTOCK_ALERTS_WEBHOOKS", to.url)
        monkeypatch.setenv("PENSTOCK_ALERTS_SECRET", SECRET)
        async with quota_process(dsn, tmp_path) as one, quota_process(dsn, tmp_path) as two:
            key = (await one.new_key(100, name=new_name())).key
            await asyncio.gather(_spend(one, key.id, 30, 30), _spend(two, key.id, 30, 30))
            await _spend(two, key.id, 40, 45)
            await to.until(4)
            tried = await one.admin.TestAlerts(
                admin_pb2.TestAlertsRequest(), metadata=(*ADMIN, ("x-penstock-dry-run", "1"))
            )
            assert [(0, "not sent: this is a dry run")] == [
                (d.status, d.error) for d in tried.deliveries
            ]
            answer = await two.admin.TestAlerts(admin_pb2.TestAlertsRequest(), metadata=ADMIN)
            assert [(204, "")] == [(d.status, d.error) for d in answer.deliveries]
            listed = (
                await one.admin.ListAlerts(
                    admin_pb2.ListAlertsRequest(account_id=key.id), metadata=ADMIN
                )
            ).alerts
        kinds = [got.json["data"]["kind"] for got in to.received]
        assert ["budget_threshold"] * 3 + ["overage", "test"] == sorted(kinds)
        assert all(got.is_signed_by(SECRET.encode()) for got in to.received)
        told = {got.json["data"]["message"] for got in to.received[:4]}
        assert told == {alert.message for alert in listed}
        assert not [text for text in told if "alert of kind" in text]
