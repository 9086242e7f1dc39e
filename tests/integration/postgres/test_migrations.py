import asyncio
from pathlib import Path

import asyncpg
import pytest

from penstock.core.postgres import (
    Migration,
    MigrationError,
    migrate,
    read_migrations,
    schema_version,
)

ONE = Migration(1, "0001_one", "CREATE TABLE one (a integer); INSERT INTO one VALUES (1);")
TWO = Migration(2, "0002_two", "ALTER TABLE one ADD COLUMN b integer;")
BROKEN = Migration(2, "0002_broken", "ALTER TABLE one ADD COLUMN b integer; SELECT nothing;")


async def version(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return await schema_version(connection)
    finally:
        await connection.close()


async def test_migrations_run_once_and_in_order(database_dsn: str) -> None:
    assert await version(database_dsn) == 0
    assert await migrate(database_dsn, [ONE]) == ["0001_one"]
    assert await migrate(database_dsn, [ONE, TWO]) == ["0002_two"]
    assert await migrate(database_dsn, [ONE, TWO]) == []
    assert await version(database_dsn) == 2


async def test_several_processes_migrate_at_once_without_harm(database_dsn: str) -> None:
    ran = await asyncio.gather(*(migrate(database_dsn, [ONE, TWO]) for _ in range(4)))

    assert sorted(len(r) for r in ran) == [0, 0, 0, 2]
    connection = await asyncpg.connect(database_dsn)
    assert await connection.fetchval("SELECT count(*) FROM one") == 1
    await connection.close()


async def test_a_migration_that_fails_leaves_nothing_of_itself(database_dsn: str) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError):
        await migrate(database_dsn, [ONE, BROKEN])

    assert await version(database_dsn) == 1
    assert await migrate(database_dsn, [ONE, TWO]) == ["0002_two"]


async def test_a_newer_database_is_refused(database_dsn: str) -> None:
    await migrate(database_dsn, [ONE, TWO])

    with pytest.raises(MigrationError, match="newer than this program"):
        await migrate(database_dsn, [ONE])


async def test_a_program_that_was_rolled_back_leaves_a_newer_database_as_it_is(
    database_dsn: str,
) -> None:
    await migrate(database_dsn, [ONE, TWO])

    assert await migrate(database_dsn, [ONE], newer_ok=True) == []

    assert await version(database_dsn) == 2
    with pytest.raises(MigrationError, match="0001_one was changed"):
        await migrate(database_dsn, [Migration(1, "0001_one", "SELECT 1")], newer_ok=True)


async def test_a_changed_migration_is_refused(database_dsn: str) -> None:
    await migrate(database_dsn, [ONE])

    with pytest.raises(MigrationError, match="0001_one was changed"):
        await migrate(database_dsn, [Migration(1, "0001_one", "SELECT 1")])


def test_a_gap_in_the_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").touch()
    (tmp_path / "0003_b.sql").touch()

    with pytest.raises(MigrationError, match="without a gap"):
        read_migrations(tmp_path)


def test_a_misnamed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first.sql").touch()

    with pytest.raises(MigrationError, match=r"first\.sql"):
        read_migrations(tmp_path)
