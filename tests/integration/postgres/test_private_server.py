"""The private PostgreSQL: no trust, nothing opened, data kept, faults told."""

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

import asyncpg
import pytest

from penstock.core import postgres, postgres_server
from penstock.core.postgres_server import (
    PostgresServerError,
    PrivateServer,
    remove,
    running_pid,
    server_home,
)
from support.postgres import crash
from support.tcp import free_port


@pytest.fixture
def server(tmp_path: Path):
    server = PrivateServer(tmp_path / "postgres", free_port())
    yield server
    server.stop()
    remove(server.folder)


def ask(dsn: str, query: str):
    async def run():
        connection = await asyncpg.connect(dsn, timeout=5)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_data_outlives_a_restart_and_a_crash(server: PrivateServer) -> None:
    server.start()
    ask(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS n")
    server.stop()
    assert not server.is_running()
    server.start()
    assert ask(server.dsn(), "SELECT n FROM kept") == 42
    crash(server)
    server.start()
    assert ask(server.dsn(), "SELECT n FROM kept") == 42


async def _storm(dsn: str, stop: asyncio.Event) -> None:
    """Connections without end: there is always a child that is being forked."""
    while not stop.is_set():
        with contextlib.suppress(OSError, asyncpg.PostgresError, TimeoutError):
            connection = await asyncpg.connect(dsn, timeout=5)
            connection.terminate()


async def test_a_crash_leaves_no_child_behind(server: PrivateServer) -> None:
    server.start()
    for _ in range(3):
        folder = server_home(server.folder) / "data"
        stop = asyncio.Event()
        storms = [asyncio.create_task(_storm(server.dsn(), stop)) for _ in range(16)]
        await asyncio.sleep(0.2)  # the crash comes at any moment

        assert [] != _in(folder)

        await asyncio.to_thread(crash, server)

        assert [] == _in(folder)
        server.start()
        stop.set()
        await asyncio.gather(*storms)


def _in(folder: Path) -> list[str]:
    """Processes that have it as their working folder, as all of PostgreSQL have its data."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
    return found


def test_nobody_gets_in_without_the_password(server: PrivateServer) -> None:
    server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        ask(f"postgresql://penstock:wrong@127.0.0.1:{server.port}/postgres", "SELECT 1")
    rules = ask(server.dsn(), "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules")
    assert rules == "scram-sha-256"
    assert ask(server.dsn(), "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server.dsn(), "SHOW unix_socket_directories") == ""


def test_a_role_cannot_connect_to_the_other_database(server: PrivateServer) -> None:
    server.start()
    for name in ("ledger", "cache"):
        asyncio.run(
            postgres.ensure_database(server.dsn(), database=name, role=name, password="it's")
        )
    own = f"postgresql://ledger:it's@127.0.0.1:{server.port}/ledger"
    assert ask(own, "SELECT current_user") == "ledger"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(f"postgresql://ledger:it's@127.0.0.1:{server.port}/cache", "SELECT 1")


def test_the_files_are_closed_and_no_parent_was_opened(server: PrivateServer) -> None:
    server.folder.parent.chmod(0o700)
    server.start()

    home = server_home(server.folder)
    assert stat.S_IMODE((home / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.folder / "password").stat().st_mode) == 0o600
    assert not (home / "initdb.password").exists()
    if os.geteuid() == 0:
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_no_secret_of_ours_is_in_the_servers_environment(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.start()
    environment = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert b"sk-secret" not in environment
    assert server.password.encode() not in environment


def test_a_port_in_use_is_named(server: PrivateServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with pytest.raises(PostgresServerError, match=f"Port {server.port} .*cannot be used"):
            server.start()


def test_a_server_whose_starter_was_killed_is_taken_over(server: PrivateServer) -> None:
    server.start()
    left_over = server.pid
    second = PrivateServer(server.folder, server.port)

    second.start()

    data = server_home(server.folder) / "data"
    assert running_pid(data) == second.pid != left_over
    second.stop()


def test_a_stale_pid_file_of_a_living_stranger_is_no_obstacle(server: PrivateServer) -> None:
    server.start()
    server.stop()
    data = server_home(server.folder) / "data"
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n0\n{server.port}\n\n\n\n\n")

    server.start()

    assert ask(server.dsn(), "SELECT 1") == 1


def test_a_full_disk_is_told_before_anything_is_written(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "DISK_FREE_BYTES_MIN", 2**62)
    with pytest.raises(PostgresServerError, match="MiB free"):
        server.start()
    assert not (server_home(server.folder) / "data").exists()


def test_an_empty_place_is_not_taken_for_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, standing = tmp_path / "postgres", tmp_path / "standing"
    for made in (folder, standing):
        made.mkdir()
    (standing / "kept").touch()
    (folder / "location").touch()  # as a full disk leaves it
    monkeypatch.chdir(standing)
    remove(folder)
    assert (standing / "kept").exists()
    assert not folder.exists()


def test_data_of_another_version_is_refused(server: PrivateServer) -> None:
    server.start()
    server.stop()
    (server_home(server.folder) / "data" / "PG_VERSION").write_text("13\n")
    with pytest.raises(PostgresServerError, match="made by PostgreSQL 13"):
        server.start()


def test_missing_binaries_are_told(server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PostgresServerError, match="binaries of PostgreSQL 18 are missing"):
        server.start()


def test_a_server_that_dies_shows_the_end_of_its_log(server: PrivateServer) -> None:
    server.settings = {"no_such_setting": "1"}
    with pytest.raises(PostgresServerError, match="no_such_setting"):
        server.start()
    assert not server.is_running()
