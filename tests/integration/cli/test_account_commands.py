"""`penstock account | keys | pool`, against a real ledger."""

from support.admin import snapshot
from support.operating import Operator


async def test_an_organisation_from_its_making_to_its_suspension(own_operator: Operator) -> None:
    ask = own_operator.json
    org = await ask("account", "create", "acme", "--commercial")
    assert ("KIND_ORG", "acme", True) == (org["kind"], org["name"], org["commercial"])
    team = await ask("account", "create", "search", "--org", "acme", "--prepaid")
    other = await ask("account", "create", "team:acme/sales")
    assert {org["id"]} == {team["org_id"], other["org_id"]}
    listed = (await ask("account", "list"))["accounts"]
    assert {"acme", "search", "sales"} <= {one["name"] for one in listed}
    changed = await ask("account", "set", "team:acme/search", "--payg", "--commercial")
    assert (False, True) == (changed["prepaid"], changed["commercial"])
    assert (await ask("account", "suspend", "team:acme/search"))["suspended"]
    assert (await ask("account", "show", "team:search"))["suspended"]
    assert not (await ask("account", "resume", "team:acme/search"))["suspended"]
    assert "acme" in await own_operator.said("account", "list")
    made = await own_operator.said("account", "create", "ads", "--org", "acme")
    assert "team:acme/ads" in made


async def test_a_key_from_its_making_to_its_end(own_operator: Operator) -> None:
    ask = own_operator.json
    await ask("account", "create", "acme")
    await ask("account", "create", "search", "--org", "acme")
    words = ("keys", "create", "ci", "--team", "acme/search", "--model", "auto")
    made = await ask(*words)
    assert made["secret"].startswith("ps-")
    assert "has an active key 'ci' already" in await own_operator.refused(*words)
    rotated = await ask("keys", "rotate", "key:ci", "--overlap", "24h")
    assert made["secret"] != rotated["secret"]
    assert 2 == rotated["key"]["secrets"]
    (before,) = rotated["before"]
    assert made["key"]["prefix"] == before["prefix"]
    assert before["valid_until"] > before["created_at"]
    assert 1 == (await ask("keys", "rotate", "key:ci", "--overlap", "0"))["key"]["secrets"]
    seen = await own_operator.said("keys", "rotate", "key:ci", "--overlap", "7d")
    newest = (await ask("keys", "list"))["keys"][0]["prefix"]
    new, old = [line for line in seen.splitlines() if "…" in line]
    assert [f"{newest}…", "now", "never"] == new.split()
    assert 2 == old.count(" UTC")
    seen = await own_operator.said("keys", "rotate", "key:ci", "--overlap", "1h", "--dry-run")
    (tried,) = [line for line in seen.splitlines() if "the new one" in line]
    assert ["now", "never"] == tried.split()[-2:]
    # The one before the last was to live for seven days.
    assert 1 == seen.count("sooner than")
    changed = await ask("keys", "update", "key:ci", "--name", "cd", "--all-models", "--local-only")
    assert ("cd", [], True) == (changed["name"], changed["allowed_models"], changed["local_only"])
    assert "expires_at" in await ask("keys", "expire", "key:cd", "--at", "2999-01-01")
    assert "expires_at" not in await ask("keys", "update", "key:cd", "--never-expires")
    assert "STATE_REVOKED" == (await ask("keys", "revoke", "key:cd"))["state"]
    assert "revoked" in await own_operator.said("keys", "list", "--team", "acme/search")
    assert made["secret"] not in await own_operator.said("keys", "list")


async def test_what_is_not_said_of_a_pool_stays(own_operator: Operator) -> None:
    ask = own_operator.json
    providers = ("--provider", "openai", "--provider", "openai-eu")
    made = await ask("pool", "set", "openai", *providers, "--prepaid")
    assert (["openai", "openai-eu"], True) == (made["providers"], made["prepaid"])
    fewer = await ask("pool", "set", "pool:openai", "--provider", "openai")
    assert (["openai"], True) == (fewer["providers"], fewer["prepaid"])
    payg = await ask("pool", "set", "openai", "--payg")
    assert (["openai"], False) == (payg["providers"], payg["prepaid"])
    assert [payg] == (await ask("pool", "list"))["pools"]
    assert "say --provider" in await own_operator.refused("pool", "set", "azure")
    taken = await own_operator.refused("pool", "set", "other", "--provider", "openai")
    assert "PROVIDER_IN_OTHER_POOL" in taken


async def test_a_dry_run_changes_nothing_and_makes_no_text(own_operator: Operator) -> None:
    await own_operator.said("account", "create", "acme")
    await own_operator.said("account", "create", "search", "--org", "acme")
    await own_operator.said("keys", "create", "ci", "--team", "search")
    await own_operator.said("pool", "set", "azure", "--provider", "azure")
    before = await snapshot(own_operator.ledger)
    for words in (
        ("account", "create", "zeta"),
        ("account", "set", "org:acme", "--prepaid"),
        ("account", "suspend", "org:acme"),
        ("keys", "create", "cd", "--team", "search"),
        ("keys", "rotate", "key:ci"),
        ("keys", "update", "key:ci", "--local-only"),
        ("keys", "revoke", "key:ci"),
        ("pool", "set", "openai", "--provider", "openai"),
        ("pool", "close", "azure"),
        ("budget", "set", "5", "--account", "key:ci"),
        ("limit", "set", "key:ci", "--requests", "6/minute", "--in-flight", "4"),
        ("grant", "create", "18", "--account", "org:acme", "--key", "k", "--for", "3mo"),
    ):
        told = await own_operator.json(*words, "--dry-run")
        assert told["dry_run"]
        assert not told.get("secret")
    assert before == await snapshot(own_operator.ledger)


async def test_names_that_mean_none_or_several_are_told(own_operator: Operator) -> None:
    for org in ("acme", "beta"):
        await own_operator.said("account", "create", org)
        await own_operator.said("account", "create", "search", "--org", org)
    told = await own_operator.refused("account", "suspend", "team:search")
    assert "team:acme/search" in told
    assert "team:beta/search" in told
    assert "there is no org or team 'org:gamma'" in await own_operator.refused(
        "account", "show", "org:gamma"
    )
    assert "ACCOUNT_NAME_TAKEN" in await own_operator.refused("account", "create", "acme")
