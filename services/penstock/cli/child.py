"""One child process: its environment, its log, its end."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.cli import launch
from penstock.cli.processes import Record
from penstock.cli.readiness import EndsWell, Readiness
from penstock.core.log import put_aside

SETTINGS = ("info: configuration: ", "info: starting with ")
"""A service's first line: what it was started with, never why it ended."""

TAIL_BYTES = 16_384
TAIL_LINES = 8
LINE_CHARS_MAX = 400

_LAUNCH = (sys.executable, "-I", "-S", str(Path(launch.__file__)))


@dataclass(frozen=True, slots=True)
class Service:
    """What the supervisor runs.

    Attributes:
        name: Of its log and of its line on the screen.
        what: What it is, for people.
        after: Names of those that must be ready before it starts.
        stop_rank: At the end lower ranks stop first, equal ones together.
        start_seconds: It must be ready within this.
        stop_seconds: Between SIGTERM and SIGKILL.
        check: What to look at when it fails, beside its log.
    """

    name: str
    what: str
    command: tuple[str, ...]
    readiness: Readiness
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    after: tuple[str, ...] = ()
    stop_rank: int = 1
    start_seconds: float = 60.0
    stop_seconds: float = 30.0
    ready_file: Path | None = None
    check: str = ""

    @property
    def is_task(self) -> bool:
        return isinstance(self.readiness, EndsWell)


class Child:
    """A started service."""

    def __init__(
        self, service: Service, process: asyncio.subprocess.Process, log: Path, start: int
    ) -> None:
        self.service = service
        self._process = process
        self._log = log
        self._log_start = start
        self.record = _record(service.name, process.pid)

    @classmethod
    async def start(cls, service: Service, log: Path) -> "Child":
        """Starts it, in a session of its own: a terminal's Ctrl-C is for the supervisor to order.

        Raises:
            OSError: the command cannot be run, or the log cannot be written.
        """
        if service.ready_file is not None:
            service.ready_file.unlink(missing_ok=True)
        put_aside(log)
        with log.open("ab") as output:
            start = output.tell()
            process = await asyncio.create_subprocess_exec(
                *_LAUNCH,
                str(os.getpid()),
                *service.command,
                env=dict(service.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(service, process, log, start)

    async def wait(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        return await self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def stop(self, hurry: asyncio.Event) -> bool:
        """SIGTERM; SIGKILL after its time, or at once in a hurry. True: it ended by itself."""
        if not self.is_running:
            return True
        self._signal(signal.SIGTERM)
        ended = asyncio.create_task(self._process.wait())
        hurried = asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait(
                {ended, hurried},
                timeout=self.service.stop_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ended.done():
                return True
            self._signal(signal.SIGKILL)
            await ended
            return False
        finally:
            hurried.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def last_words(self, lines: int = TAIL_LINES) -> list[str]:
        """The end of what this child logged, one readable line each: its faults and warnings, and
        what is not of our log's form; where there is none of these, the rest.
        """
        told = tail(self._log, self._log_start, lines=TAIL_BYTES)
        grave = [line for line in told if not line.startswith(("info: ", "debug: "))]
        return (grave or _without_settings(told))[-lines:]

    def progress(self) -> str:
        """The last that it told, for a start under way."""
        told = _without_settings(tail(self._log, self._log_start))
        return told[-1].removeprefix("info: ") if told else ""


def _without_settings(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(SETTINGS)]


def _record(name: str, pid: int) -> Record | None:
    try:
        return Record.of(name, pid)
    except Exception:  # noqa: BLE001 - psutil: it ended already, and will be told of as that
        return None


def tail(log: Path, start: int = 0, lines: int = TAIL_LINES) -> list[str]:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    wanted = [line for line in text.splitlines() if line.strip()][-lines:]
    return [readable(line)[:LINE_CHARS_MAX] for line in wanted]


def readable(line: str) -> str:
    """Our own JSON log lines as `level: message`; others as they are."""
    try:
        told = json.loads(line)
        text = f"{told['level']}: {told['message']}"
    except (ValueError, KeyError, TypeError):
        return line.rstrip()
    exception = str(told.get("exception") or "").strip().splitlines()
    return f"{text} ({exception[-1]})" if exception else text


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
