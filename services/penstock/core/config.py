"""Reads `penstock.yaml`: every fault at once, by path and line; reloads it when it changes.

A file that became faulty keeps the last good one in use and says so.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from penstock.core.catalogue import Catalogue
from penstock.core.config_faults import faults_between, field_faults
from penstock.core.config_tree import TreeError, read_tree

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 4 * 1024 * 1024
"""A catalogue of thousands of models is far smaller; more is a wrong path."""

LOOK_MS = 5000
"""Between two looks at a file of which nothing is heard: where its folder itself was replaced, on
file systems of others, and where the system has no watch left to give, changes are not told."""


class ConfigError(Exception):
    """All faults of a configuration at once, one a line.

    Of the file: `path:line: field: what is wrong`; of an environment: `VARIABLE: what is wrong`.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load(path: Path) -> Catalogue:
    """The file's catalogue.

    Raises:
        ConfigError: with all faults of the file; nothing else, whatever lies there.
    """
    return parse(read(path), str(path))


def read(path: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: there is no such file, or it is no text.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError([f"{path}: is no file"])
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([f"{path}: larger than {FILE_BYTES_MAX} bytes; is it the right file?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text"]) from None


def parse(text: str, name: str = "penstock.yaml") -> Catalogue:
    """The text's catalogue; faults call the text by `name`, before the line.

    Raises:
        ConfigError: with all faults of the text.
    """
    try:
        tree = read_tree(text)
    except TreeError as error:
        where = f"{name}:{error.line}" if error.line else name
        raise ConfigError([f"{where}: {error}"]) from None
    if not tree.faults and not isinstance(tree.value, dict):
        what = "is empty" if tree.value is None else "must be a mapping of fields"
        raise ConfigError([f"{name}:1: {what}; see `penstock config example`"])
    told = [(f.line, f.path, f.problem) for f in tree.faults]
    try:
        catalogue = Catalogue.model_validate(tree.value)
        found = catalogue.faults()
    except ValidationError as error:
        found = [*field_faults(error), *faults_between(tree.value)]
    # What is no value at all is told once, not also as one of the wrong kind.
    known = {path for _, path, _ in told}
    told += [(tree.line(path), path, message) for path, message in found if path not in known]
    if told:
        raise ConfigError([_fault(name, *fault) for fault in told])
    return catalogue


def _fault(name: str, line: int, path: tuple[str | int, ...], message: str) -> str:
    field = ".".join(str(p) for p in path if p != "[key]") or "(file)"
    return f"{name}:{line}: {field}: {message}"


def _log_fault(error: ConfigError) -> None:
    logger.error("configuration is faulty, the last good one stays in use:\n%s", error)


class LiveCatalogue:
    """The catalogue in use. `current` is replaced as a whole: a request keeps the one it began
    with.

    Args:
        load: Makes the catalogue of the file; raises ConfigError.
    """

    def __init__(self, path: Path, load: Callable[[Path], Catalogue] = load) -> None:
        self._path = path
        self._load = load
        self._seen = _signature(path)
        self.current = load(path)
        self.faults: list[str] = []
        """Of the file as it lies there now; empty while it is the one in use."""

    async def watch(
        self,
        on_change: Callable[[Catalogue], None] = lambda _: None,
        on_fault: Callable[[ConfigError], None] = _log_fault,
    ) -> None:
        """Runs for ever, whatever becomes of the file: takes over each good change of it, tells of
        each faulty one.
        """
        while True:
            await self._look(on_change, on_fault)
            try:
                # The folder is watched: editors and ConfigMaps replace the file, which ends a
                # watch on it.
                async for _ in awatch(
                    self._path.parent,
                    recursive=False,
                    rust_timeout=LOOK_MS,
                    yield_on_timeout=True,
                ):
                    await self._look(on_change, on_fault)
            except (OSError, WatchfilesRustInternalError):
                # The folder is away or closed to us, or all of the system's watches are taken.
                await asyncio.sleep(LOOK_MS / 1000)

    async def _look(
        self, on_change: Callable[[Catalogue], None], on_fault: Callable[[ConfigError], None]
    ) -> None:
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            # In a thread: a large file takes seconds, and streams go on meanwhile.
            fresh = await asyncio.to_thread(self._load, self._path)
            if fresh != self.current or self.faults:
                _take_over(fresh, on_change)
                self.current = fresh
                logger.info("configuration reloaded from %s", self._path)
            self.faults = []
        except ConfigError as error:
            self.faults = error.faults
            on_fault(error)


def _take_over(fresh: Catalogue, on_change: Callable[[Catalogue], None]) -> None:
    try:
        on_change(fresh)
    except Exception as error:
        logger.exception("a change of the configuration could not be taken over")
        raise ConfigError([f"cannot be taken over: {error!r}"]) from error


def _signature(path: Path) -> tuple[int, ...] | None:
    """Another one whenever the file was written, replaced or made readable; None: none is there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
