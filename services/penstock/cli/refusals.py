"""What the router refuses for want of money, credit or room, as a person is told of it."""

from collections.abc import Callable, Mapping

from penstock.cli import admin
from penstock.cli.errors import CliError
from penstock.cli.wording import NO_NAMES
from penstock.client import PenstockError
from penstock.core.money import format_usd


def told(error: PenstockError, address: str, names: Mapping[str, str] = NO_NAMES) -> CliError:
    """Who is out of what, when it frees up, and what an operator types; else as services say it.

    `names`: of accounts, by id; where they are known, they stand beside the ids.
    """
    write = _WRITERS.get(error.reason)
    if write is None:
        return admin.told(error, address, names=names)
    try:
        return write(error)
    except (KeyError, ValueError):
        # Of another release, or from a proxy: without the facts.
        return admin.told(error, address, names=names)


def _limited(error: PenstockError) -> CliError:
    """The ledger's own sentence, which names the limit and its reset."""
    account_id, limit_id = error.metadata["account_id"], error.metadata["limit_id"]
    if error.retry_after_seconds is None:
        then = "Ask for less (`--max-tokens`)"
    else:
        then = f"Again after {admin.duration(error.retry_after_seconds)}"
    return CliError(
        f"{error.reason}: {error.message}",
        remedy=f"{then}; or `penstock limit set` raises it ({account_id}, {limit_id}).",
    )


def _out_of_credit(error: PenstockError) -> CliError:
    facts = error.metadata
    left, asked = (int(facts[f"{name}_nano_usd"]) for name in ("available", "requested"))
    owner = f'{facts["account_kind"]} "{facts.get("account_name") or facts["account_id"]}"'
    # The balance of a team or an organisation has only its own grants, not those of all above it.
    key = facts["account_id"] if facts["account_kind"] == "key" else facts.get("key_id", "")
    below = f"{key}`" if key else "KEY` of a key of it"
    return CliError(
        f"{error.reason}: prepaid {owner} has {format_usd(left)} USD of usable credit left;"
        f" this request may cost {format_usd(asked)}",
        remedy=f"`penstock grant create` grants more ({facts['account_id']}); "
        f"`penstock ledger balance {below} tells what is there, and why the rest of it does not"
        " apply.",
    )


def _over_budget(error: PenstockError) -> CliError:
    """The ledger's own sentence, which names the budget and its reset."""
    account_id, name = error.metadata["account_id"], error.metadata["budget_name"]
    return CliError(
        f"{error.reason}: {error.message}",
        remedy=f"`penstock budget set LIMIT --account {account_id} --name {name}` raises it; "
        f"`penstock ledger balance {account_id}` tells where it went.",
    )


_WRITERS: dict[str, Callable[[PenstockError], CliError]] = {
    "RATE_LIMITED": _limited,
    "CREDIT_EXHAUSTED": _out_of_credit,
    "BUDGET_EXCEEDED": _over_budget,
}
