"""Names of keys: no two active ones of a team bear the same."""

from pathlib import Path

import pytest

from penstock.cli.commands_keys import demand_new_name
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
