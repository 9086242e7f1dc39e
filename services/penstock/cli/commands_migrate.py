"""`penstock quota migrate`: the ledger's schema."""

import asyncio
import os
import sys

from penstock.cli import admin
from penstock.cli.child import readable
from penstock.cli.commands_audit import dsn_of
from penstock.cli.errors import CliError
from penstock.cli.groups import quota
from penstock.cli.operation import Call, Shown, operation


@operation(quota, "migrate", "penstock quota migrate")
async def migrate(call: Call) -> Shown:
    """Bring the ledger's schema forward (advisory-locked; never back).

    Migrate first, then replace the quota processes one by one: the old ones go on meanwhile.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.quota", "migrate",
        env={**os.environ, admin.QUOTA_DSN: dsn_of(call.state)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    words = said.decode(errors="replace").strip().splitlines()
    told = readable(words[-1]) if words else ""
    if process.returncode:
        raise CliError(told.removeprefix("error: ") or "the migration failed")
    told = told.removeprefix("info: ")
    return Shown({"ok": True, "message": told}, [told])
