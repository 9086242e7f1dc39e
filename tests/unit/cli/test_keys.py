"""Keys: no two active ones of a team bear the same name; a rotation says when each text ends."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cli.commands_keys import demand_new_name, texts_table
from penstock.cli.errors import CliError
from penstock.cli.names import Named
from penstock.cli.operation import Call
from penstock.cli.state import State
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

TEAM = Named("team", "team_1", "default")


class Ledger(Call):
    """Has the keys of one team."""

    async def ask(self, method: str, request: object, _answer: object) -> object:
        assert ("ListKeys", admin_pb2.ListKeysRequest(team_id="team_1")) == (method, request)
        active = admin_pb2.Key(id="key_1", name="ci", state=Principal.STATE_ACTIVE)
        revoked = admin_pb2.Key(id="key_0", name="old", state=Principal.STATE_REVOKED)
        return admin_pb2.ListKeysResponse(keys=[revoked, active])


async def test_a_name_of_an_active_key_is_refused_with_what_to_do() -> None:
    with pytest.raises(CliError, match=r"active key 'ci' already \(key_1\)") as caught:
        await demand_new_name(Ledger(State.at(Path("state")), as_json=False), TEAM, "ci")
    assert "penstock keys revoke key_1" in caught.value.remedy


async def test_a_name_of_a_revoked_key_may_be_used_again() -> None:
    await demand_new_name(Ledger(State.at(Path("state")), as_json=False), TEAM, "old")


def stamp(text: str) -> Timestamp:
    found = Timestamp()
    found.FromJsonString(text)
    return found


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (None, ""),
        ("2026-11-30T00:00:00Z", ""),
        ("2026-12-06T00:00:00Z", "\nsooner than 2026-12-06 00:00 UTC"),
    ],
    ids=["first rotation", "not sooner", "sooner"],
)
def test_each_text_is_told_with_its_end_and_with_a_later_one_that_was_told_before(
    before: str | None, told: str
) -> None:
    old = admin_pb2.KeyText(
        prefix="ps-old",
        created_at=stamp("2026-11-01T00:00:00Z"),
        valid_until=stamp("2026-11-30T00:00:00Z"),
        valid_until_before=None if before is None else stamp(before),
    )
    key = admin_pb2.Key(prefix="ps-new", expires_at=stamp("2027-01-01T00:00:00Z"))
    rotated = admin_pb2.CreateKeyResponse(key=key, secret="ps-new-and-more", before=[old])
    cells = [[str(cell) for cell in column.cells] for column in texts_table(rotated).columns]
    assert [
        ["ps-new…", "ps-old…"],
        ["now", "2026-11-01 00:00 UTC"],
        ["2027-01-01 00:00 UTC", f"2026-11-30 00:00 UTC{told}"],
    ] == cells
