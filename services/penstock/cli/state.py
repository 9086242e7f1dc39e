"""The state folder of one machine (`.penstock`): what is kept there, and under which names.

Everything that is kept between two starts lies below it, save what must have a short path (unix
sockets) or must be reachable by another user (PostgreSQL, where Penstock is started as root): both
are named by a hash of the folder's path and removed with it.
"""

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.cli.errors import CliError

FOLDER_DEFAULT = ".penstock"
SECRET_MODE = 0o600
MARK = "Penstock keeps its state in this folder. `make clean` removes it with all that is in it.\n"


@dataclass(frozen=True, slots=True)
class State:
    """Paths below one state folder; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "State":
        return cls(folder.expanduser().resolve())

    @property
    def mark(self) -> Path:
        """Says that the folder is Penstock's own, and may be removed as a whole."""
        return self.root / "README"

    @property
    def is_ours(self) -> bool:
        """Whether it was made by `make`, also by one of a release that left no mark."""
        folders = (self.run, self.logs)
        is_older = self.lock.is_file() and all(folder.is_dir() for folder in folders)
        return is_older or self._is_marked()

    def _is_marked(self) -> bool:
        try:
            return self.mark.read_text(encoding="utf-8") == MARK
        except (OSError, ValueError):
            return False

    @property
    def env(self) -> Path:
        """What a client needs: PENSTOCK_GRPC, PENSTOCK_HTTP, PENSTOCK_API_KEY."""
        return self.root / "env"

    @property
    def admin_env(self) -> Path:
        """What an operator's commands need: AdminService's address and token, the trace store."""
        return self.root / "admin.env"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    @property
    def ports(self) -> Path:
        return self.root / "ports.json"

    @property
    def run(self) -> Path:
        """What lives only while Penstock runs: process records, ready files, the configuration."""
        return self.root / "run"

    @property
    def lock(self) -> Path:
        return self.root / "up.lock"

    @property
    def processes(self) -> Path:
        return self.run / "processes.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, service: str) -> Path:
        return self.logs / f"{service}.log"

    def ready_file(self, service: str) -> Path:
        return self.run / f"{service}.ready"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def traces(self) -> Path:
        return self.root / "traces"

    @property
    def models(self) -> Path:
        """Converted weights (vLLM)."""
        return self.root / "models"

    @property
    def config_in_use(self) -> Path:
        """The last good `penstock.yaml`, as the parts read it."""
        return self.run / "penstock.yaml"

    @property
    def short_temp(self) -> Path:
        """For children that put unix sockets below TMPDIR: their paths end at 107 characters."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"ps-{digest}"

    def make(self) -> None:
        """Makes the folders, in a place that is free or was made by this.

        Raises:
            CliError: the place cannot be written, or holds something else.
        """
        try:
            if self.root.is_dir() and any(self.root.iterdir()) and not self.is_ours:
                raise CliError(
                    f"{self.root} holds other files: it is no state folder of Penstock's",
                    remedy="Choose a new or an empty one with --state (make: STATE=…).",
                )
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_marked():
                write_secret(self.mark, MARK)
            for folder in (self.run, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
            # PostgreSQL may run as another user below `root`: it needs to pass, not to list.
            self.root.chmod(0o711)
            probe = self.run / "probe"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError as error:
            raise CliError(
                f"the state folder {self.root} cannot be written: {error.strerror}",
                remedy="Free some space or mend its permissions, or choose another folder "
                "with --state.",
            ) from None


def write_secret(path: Path, text: str) -> None:
    """Replaces the file at once, readable by its owner alone.

    Raises:
        CliError: it cannot be written; the old one stays.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, flags, SECRET_MODE), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise CliError(
            f"{path} cannot be written: {error.strerror}",
            remedy="Free some space if the disk is full, or mend the folder's permissions.",
        ) from None


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """A file for `source`: NAME=value lines, quoted as a shell needs it."""
    write_secret(path, "".join(f"{name}={shlex.quote(v)}\n" for name, v in values.items()))


def read_env(path: Path) -> dict[str, str]:
    """What `write_env` wrote; empty where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from None
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and name.isidentifier():
            found[name] = "".join(shlex.split(value))
    return found


def read_json(path: Path) -> dict[str, object]:
    """An object; empty where the file is missing or half-written by a machine that lost power."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_secret(path, json.dumps(value, indent=1) + "\n")
