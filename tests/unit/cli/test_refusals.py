"""A refusal in the conversation: who is out of what, when it frees up, what to type."""

import io

import pytest
from rich.console import Console

from penstock.cli import admin, refusals
from penstock.cli.chat import Chat, Settings
from penstock.client import Client
from penstock.core.errors import (
    BudgetExceeded,
    CapacityExhausted,
    Conflict,
    CreditExhausted,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    PenstockError,
    RateLimited,
    Unavailable,
)
from support.fronts import front_house
from support.quota_server import KEY

SETTINGS = Settings(
    model="auto", system="", max_tokens=20, temperature=None, local_only=False, no_cache=False
)
KEY_OF = {"account_kind": "key", "account_id": "key_3", "account_name": "ci"}
RATE = KEY_OF | {"limit_id": "limit_4"}
TEAM = {"account_kind": "team", "account_id": "team_2", "account_name": "acme"}
CREDIT = KEY_OF | {"available_nano_usd": "20000000", "requested_nano_usd": "31000000"}


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (
            RateLimited(
                "limit 'pace' (minute) of key 'ci' has 0 requests left of 5",
                metadata=RATE,
                retry_after_seconds=12.3,
            ),
            "RATE_LIMITED: limit 'pace' (minute) of key 'ci' has 0 requests left of 5",
            "Again after 13 s; or `penstock limit set` raises it (key_3, limit_4).",
        ),
        (
            RateLimited("limit 'pace' is 5 tokens, the attempt alone counts 900", metadata=RATE),
            "RATE_LIMITED: limit 'pace' is 5 tokens, the attempt alone counts 900",
            "Ask for less (`--max-tokens`); or `penstock limit set` raises it (key_3, limit_4).",
        ),
        (
            CreditExhausted("x", metadata=CREDIT),
            (
                'CREDIT_EXHAUSTED: prepaid key "ci" has 0.02 USD of usable credit left; '
                "this request may cost 0.031"
            ),
            (
                "`penstock grant create` grants more (key_3); "
                "`penstock ledger balance key_3` tells what is there, and why the rest of it"
                " does not apply."
            ),
        ),
        (
            CreditExhausted("x", metadata=CREDIT | TEAM | {"key_id": "key_7"}),
            (
                'CREDIT_EXHAUSTED: prepaid team "acme" has 0.02 USD of usable credit left; '
                "this request may cost 0.031"
            ),
            (
                "`penstock grant create` grants more (team_2); "
                "`penstock ledger balance key_7` tells what is there, and why the rest of it"
                " does not apply."
            ),
        ),
        (
            CreditExhausted("x", metadata=CREDIT | TEAM),
            (
                'CREDIT_EXHAUSTED: prepaid team "acme" has 0.02 USD of usable credit left; '
                "this request may cost 0.031"
            ),
            (
                "`penstock grant create` grants more (team_2); "
                "`penstock ledger balance KEY` of a key of it tells what is there, and why the"
                " rest of it does not apply."
            ),
        ),
        (
            BudgetExceeded(
                "budget 'b' has 0.00 USD left; it never resets",
                metadata=KEY_OF | {"budget_name": "b"},
            ),
            "BUDGET_EXCEEDED: budget 'b' has 0.00 USD left; it never resets",
            (
                "`penstock budget set LIMIT --account key_3 --name b` raises it; "
                "`penstock ledger balance key_3` tells where it went."
            ),
        ),
        (
            FailedPrecondition("no budget of key key_3 applies", reason="BUDGET_MISSING"),
            "BUDGET_MISSING: no budget of key:acme/search/ci (key_3) applies",
            (
                "`penstock budget set 5 --account key:acme/search/ci` allows it 5 USD a month; a"
                " budget of its team or organisation does as well, and `unlimited` instead of 5"
                " limits nothing."
            ),
        ),
        (RateLimited("of a proxy"), "RATE_LIMITED: of a proxy", ""),
        (CapacityExhausted("full"), "CAPACITY_EXHAUSTED: full", ""),
    ],
    ids=[
        "rate",
        "never",
        "credit",
        "credit of a team",
        "credit of a team, without key",
        "budget",
        "no budget",
        "without facts",
        "another",
    ],
)
def test_a_refusal_is_told_for_people(error: PenstockError, message: str, remedy: str) -> None:
    said = refusals.told(error, "here", {"key_3": "key:acme/search/ci"})
    assert (message, remedy) == (said.message, said.remedy)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("page_token: is none", reason="PAGE_TOKEN_INVALID"), 2),
        (FailedPrecondition("not now"), 1),
    ],
)
def test_a_wrong_argument_has_one_exit_status_wherever_it_is_found(
    error: PenstockError, status: int
) -> None:
    assert status == admin.told(error, "here").code


def test_an_address_of_the_environment_is_named_where_nothing_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Unavailable("connection refused")
    monkeypatch.setenv(admin.ADDRESS, "127.0.0.1:1")
    assert f"{admin.ADDRESS} is set to it" in admin.told(away, "127.0.0.1:1").remedy
    assert admin.ADDRESS not in admin.told(away, "127.0.0.1:2").remedy


def test_a_provider_in_another_pool_is_told_once_with_what_takes_it_out() -> None:
    error = Conflict(
        "'openai' is in pool 'first'",
        reason="PROVIDER_IN_OTHER_POOL",
        metadata={"provider": "openai", "pool": "first"},
        violations=[FieldViolation("providers", "is in another pool")],
    )
    said = admin.told(error, "here")
    assert "PROVIDER_IN_OTHER_POOL: 'openai' is in pool 'first'" == said.message
    assert "`penstock pool set first --provider …`" in said.remedy


async def test_a_conversation_goes_on_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front's own error, as it arrives at a client."""
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    said = io.StringIO()
    async with front_house() as house:
        # One for each target of the route.
        house.ledger.refusals = [CreditExhausted("no credit", metadata=CREDIT) for _ in range(9)]
        async with Client(house.fronts.grpc.address, KEY) as client:
            await Chat(client, SETTINGS, Console(file=said, width=200)).converse()
    assert 'prepaid key "ci" has 0.02 USD' in said.getvalue()
    assert "→ `penstock grant create` grants more (key_3)" in said.getvalue()
    assert said.getvalue().splitlines()[-1].startswith("spent 0.00")
