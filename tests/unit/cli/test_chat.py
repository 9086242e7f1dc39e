"""A conversation without a terminal, against a real front."""

import io
import sys

import pytest
from rich.console import Console

from penstock.cli.chat import Chat, Settings
from penstock.client import Client
from support.fronts import front_house
from support.quota_server import KEY

SETTINGS = Settings(
    model="auto", system="", max_tokens=20, temperature=None, local_only=False, no_cache=False
)


async def test_questions_from_a_pipe_are_answered_without_prompts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    said = io.StringIO()
    async with front_house() as house, Client(house.fronts.grpc.address, KEY) as client:
        await Chat(client, SETTINGS, Console(file=said, width=200)).converse()
    pieces = capsys.readouterr().out
    assert 2 == len(pieces.splitlines())
    assert "you ›" not in pieces + said.getvalue()
    assert "Ctrl-D" not in said.getvalue()
    assert said.getvalue().splitlines()[-1].startswith("spent ")
