"""`penstock alerts list | test`, with a webhook that answers as told."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from support.ledger import Ledger, reserve, settle, told
from support.operating import Operator, operating
from support.webhook_receiver import Receiver, receiver


@pytest.fixture
async def webhook() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


@pytest.fixture
async def operator(
    ledger: Ledger, webhook: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    monkeypatch.setenv("PENSTOCK_ALERTS_WEBHOOKS", webhook.url)
    monkeypatch.setenv("PENSTOCK_ALERTS_SECRET", "a-secret-of-at-least-24-bytes")
    async with operating(ledger, tmp_path, monkeypatch) as running:
        yield running


async def overspent(ledger: Ledger) -> int:
    """A key, one attempt of which cost more than it held."""
    key, id_ = await ledger.new_key(100), ledger.id()
    assert told(await ledger.one(reserve(id_, key, 10))) == "ok"
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    return key


async def test_an_overage_is_listed_by_kind_and_account(operator: Operator) -> None:
    key = await overspent(operator.ledger)
    await overspent(operator.ledger)
    of_key = ("alerts", "list", "--account", f"key_{key}")
    (alert,) = (await operator.json(*of_key, "--kind", "overage"))["alerts"]
    assert f"key_{key}" == alert["account_id"]
    assert "more, reservation" in await operator.said(*of_key)
    assert [] == (await operator.json(*of_key, "--kind", "drift"))["alerts"]
    assert "no alert" in await operator.said(*of_key, "--kind", "drift")
    assert "KIND_INVALID" not in await operator.said("alerts", "list", "--kind", "late_settle")
    assert "takes one of" in await operator.refused("alerts", "list", "--kind", "gossip")


async def test_pages_of_alerts_follow_each_other(operator: Operator) -> None:
    keys = [await overspent(operator.ledger) for _ in range(3)]
    of_kind = ("alerts", "list", "--kind", "overage", "--page-size", "2")
    first = await operator.json(*of_kind)
    assert [f"key_{k}" for k in keys[:0:-1]] == [a["account_id"] for a in first["alerts"]]
    token = first["next_page_token"]
    second = await operator.json(*of_kind, "--page-token", token)
    assert f"key_{keys[0]}" == second["alerts"][0]["account_id"]
    every = await operator.json(*of_kind, "--all")
    assert [f"key_{k}" for k in keys[::-1]] == [a["account_id"] for a in every["alerts"]][:3]
    assert f"--page-token {token}" in await operator.said(*of_kind)


async def test_a_test_arrives_signed_and_is_told(operator: Operator, webhook: Receiver) -> None:
    seen = await operator.said("alerts", "test")
    assert "127.0.0.1" in seen
    assert "taken" in seen
    assert "secret-path" not in seen
    sent = next(r for r in webhook.received if r.json["type"] == "alert.test")
    assert sent.is_signed_by(b"a-secret-of-at-least-24-bytes")


async def test_a_dry_run_shows_what_would_go_and_sends_nothing(
    operator: Operator, webhook: Receiver
) -> None:
    seen = await operator.said("alerts", "test", "--dry-run")
    assert '"alert.test"' in "".join(seen.split())
    assert [] == webhook.received


async def test_a_webhook_that_refuses_is_told_and_the_status_is_not_0(
    operator: Operator, webhook: Receiver
) -> None:
    webhook.answers = [500] * 20
    result = await operator.ask("alerts", "test")
    assert 1 == result.exit_code
    assert "500" in result.stdout
    assert "1 of 1 webhooks did not take it" in result.stderr


async def test_a_dry_run_without_a_webhook_shows_what_one_would_be_sent(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operating(ledger, tmp_path, monkeypatch) as running:
        *_, body = (await running.said("alerts", "test", "--dry-run")).strip().splitlines()
        sent = json.loads(body)
        assert "alert.test" == sent["type"]
        assert datetime.fromisoformat(sent["timestamp"]).tzinfo
        assert "This is a test of Penstock's alerts" in sent["data"]["message"]
        document = await running.json("alerts", "test", "--dry-run")
        assert [] == document["deliveries"]
        assert sent["data"] == json.loads(document["example_body"])["data"]
        assert "no webhook is configured" in await running.refused("alerts", "test")
