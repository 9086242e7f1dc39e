"""The lists on a terminal of 80 or 100 columns: no cell cut, no amount broken, names whole."""

import asyncio
import os
import sys

import pytest
from rich.cells import cell_len

from support.operating import Operator

TEAM = "acme-engineering/search-platform"

SETTING = (
    ("account", "create", "acme-engineering", "--commercial"),
    ("account", "create", "search-platform", "--org", "acme-engineering", "--prepaid"),
    ("keys", "create", "continuous-integration", "--team", TEAM, "--model", "local/*",
     "--model", "gpt-4o-mini", "--expires", "2999-01-01"),
    ("budget", "set", "12345.678901234", "--account", "org:acme-engineering", "--zone",
     "America/Argentina/Buenos_Aires", "--soft", "50,80,95,100"),
    ("budget", "set", "20", "--account", f"team:{TEAM}", "--window", "day", "--provider", "openai",
     "--model", "gpt-4o*", "--tag", "job=nightly-evaluation"),
    ("limit", "set", "key:continuous-integration", "--requests", "600/minute", "--tokens",
     "1000000000/day", "--in-flight", "8"),
    ("grant", "create", "18", "--account", "org:acme-engineering", "--key", "welcome-acme-2026",
     "--for", "3mo", "--model", "local/*"),
    ("grant", "create", "2500.123456789", "--account", f"team:{TEAM}", "--key",
     "startup-programme-2026", "--name", "Startup programme, first year", "--for", "1y",
     "--commercial-use"),
    ("grant", "create", "7", "--account", "key:continuous-integration", "--key", "next-year",
     "--starts", "2998-01-01", "--commercial-use"),
    ("pool", "set", "openai", "--provider", "openai", "--provider", "openai-eu", "--prepaid"),
)  # fmt: skip

LISTS = {
    "account list": ["org:acme-engineering", "platform", "commercial"],
    "keys list": ["continuous-", "active", "local/*,"],
    "budget list": ["12345.678901234", "month", "org:acme-", "day-openai-"],
    "limit list": ["1000000000", "requests-", "600"],
    "grant list": ["2500.123456789", "programme-", "welcome-acme-"],
    "pool list": ["openai-eu", "credit only"],
    "ledger balance key:continuous-integration": [
        "12345.678901234", "2500.123456789", "not for", "commercial", "begun", "600", "0 %",
    ],
}  # fmt: skip
"""What must be readable of each, unbroken."""


async def shown(columns: int, words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.cli", "--state", "state", *words.split(),
        env={**os.environ, "COLUMNS": str(columns)}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert 0 == process.returncode
    return said.decode()


@pytest.fixture
async def filled(own_operator: Operator) -> Operator:
    for words in SETTING:
        await own_operator.said(*words)
    return own_operator


async def test_a_list_fits_and_keeps_what_matters(filled: Operator) -> None:
    for columns in (80, 100):
        for words, expected in LISTS.items():
            text = await shown(columns, words)
            lines = [line.rstrip() for line in text.splitlines()]
            wide = [line for line in lines if cell_len(line) > columns and "not shown" not in line]
            assert [] == wide, words
            missing = [word for word in expected if word not in text]
            assert [] == missing, (columns, words)
            assert "…" not in text.replace("ps-", "").replace("…", "", text.count("ps-")), words


async def test_where_there_is_room_everything_is_shown(filled: Operator) -> None:
    for words in LISTS:
        text = await shown(300, words)
        assert "not shown" not in text
        # Read by a program, it is never narrowed either.
        assert text.split() == (await filled.said(*words.split())).split()


async def test_what_is_closed_is_told_so(filled: Operator) -> None:
    for group, closing in (("budget", "month"), ("limit", "tokens-day")):
        shown_at_close = await shown(80, f"{group} close {closing} --reason over")
        assert " closed " in shown_at_close
        text = await shown(80, f"{group} list --closed")
        assert (1, True) == (text.count(" closed "), " open " in text)
        assert " closed " not in await shown(80, f"{group} list")
