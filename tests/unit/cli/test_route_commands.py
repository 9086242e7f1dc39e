"""`penstock models` and `penstock explain`, over a router's real front."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from penstock.cli import __main__ as program
from penstock.cli import refusals
from penstock.cli.app import app
from penstock.core.errors import BudgetExceeded, PenstockError, Unauthenticated, Unavailable
from support.fronts import FrontHouse, front_house
from support.ports import limited
from support.quota_server import KEY

program.register()

BUDGET = BudgetExceeded(
    "budget 'a-year-of-everything' (month) of team 'continuous-integration' has 0.00 USD left of "
    "12345.678901234, the attempt may cost 0.0123; it resets at 2026-12-01T00:00:00Z",
    metadata={"account_id": "team_2", "budget_name": "a-year-of-everything"},
    retry_after_seconds=90_000,
)
WHOLE = {
    "models": ["auto", "local/small", "acme/large"],
    "explain": ["local/small", "acme/large", "refuses", "2026-12-01T00:00:00Z", "KEY_REVOKED:"],
}
"""What must be readable of each, unbroken."""
REVOKED = Unauthenticated("key key_3 is revoked; use another", reason="KEY_REVOKED")


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        monkeypatch.setenv("PENSTOCK_GRPC", found.fronts.grpc.address)
        monkeypatch.setenv("PENSTOCK_API_KEY", KEY)
        monkeypatch.chdir(tmp_path)
        yield found


async def said(*arguments: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["--state", "state", *arguments])
    assert 0 == result.exit_code, result.output
    return result.stdout


def words(text: str) -> list[str]:
    return text.split()


async def test_explain_says_of_each_attempt_whether_the_ledger_admits_it(
    house: FrontHouse,
) -> None:
    house.ledger.refusals = [BUDGET]
    lines = (await said("explain", "hi")).splitlines()
    assert ["1", "local/small", "local_first", "refuses"] == lines[3].split()[:4]
    assert ["2", "acme/large", "fallback", "admits"] == lines[4].split()[:4]
    assert ({}, []) == (house.ledger.held, house.local.calls)


@pytest.mark.parametrize("refused", [BUDGET, limited(), REVOKED], ids=lambda e: e.reason)
async def test_a_refusal_is_told_in_the_words_of_the_refused_request(
    house: FrontHouse, refused: PenstockError
) -> None:
    house.ledger.refusals = [refused]
    told = words(await said("explain", "hi", "--model", "local/small"))
    request = refusals.told(refused, "")
    expected = words(f"1 {request.message} {f'→ {request.remedy}' if request.remedy else ''}")
    assert " ".join(expected) in " ".join(told)


async def test_what_is_to_be_done_for_all_attempts_is_said_once(house: FrontHouse) -> None:
    house.ledger.refusals = [BUDGET, BUDGET]
    text = await said("explain", "hi")
    assert (2, 1) == (text.count(BUDGET.message), text.count("→"))


async def test_where_the_ledger_says_nothing_that_is_told(house: FrontHouse) -> None:
    house.ledger.down = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    text = await said("explain", "hi")
    assert (2, 0, 0) == tuple(text.count(x) for x in ("unknown", "admits", "refuses"))


async def test_json_has_the_verdict_and_its_facts(house: FrontHouse) -> None:
    house.ledger.refusals = [BUDGET]
    first, second = json.loads(await said("explain", "hi", "--json"))["attempts"]
    assert (True, False) == (second["admitted"], "refusal" in second)
    assert not first["admitted"]
    assert {
        "reason": "BUDGET_EXCEEDED",
        "message": BUDGET.message,
        "metadata": BUDGET.metadata,
        "retry_after_ms": 90_000_000,
    } == first["refusal"]


@pytest.mark.parametrize("command", [("models",), ("explain", "hi")], ids=lambda c: c[0])
async def test_what_is_printed_fits_a_narrow_terminal(
    house: FrontHouse, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    house.ledger.refusals = [BUDGET, REVOKED]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = await said(*command)
    assert [] == [line for line in narrow.splitlines() if cell_len(line.rstrip()) > 80]
    assert [] == [word for word in WHOLE[command[0]] if word not in words(narrow)]


async def test_where_a_program_reads_it_no_sentence_is_broken(house: FrontHouse) -> None:
    house.ledger.refusals = [BUDGET]
    assert BUDGET.message in await said("explain", "hi")
