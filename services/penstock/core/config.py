"""Reads `penstock.yaml`: every fault at once, by path and line; reloads it when it changes.

A file that became faulty keeps the last good one in use and says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from watchfiles import awatch

from penstock.core.catalogue import Catalogue
from penstock.core.config_faults import faults_between, field_faults

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 4 * 1024 * 1024
"""A catalogue of thousands of models is far smaller; more is a wrong path."""


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
        ConfigError: with all faults of the file.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(
                [f"{path}: larger than {FILE_BYTES_MAX} bytes; is it the right file?"]
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    return parse(text, str(path))


def parse(text: str, name: str = "penstock.yaml") -> Catalogue:
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).splitlines()[0].partition(" with value ")[0]
        raise ConfigError([f"{name}:{line}: {problem}"]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{name}:{line}: no valid YAML: {error.problem}"]) from None
    except YAMLError as error:
        raise ConfigError([f"{name}: no valid YAML: {error}"]) from None
    if not isinstance(tree, CommentedMap):
        raise ConfigError([f"{name}:1: is empty; see `penstock config example`"])
    try:
        value = YAML(typ="safe", pure=True).load(text)
        catalogue = Catalogue.model_validate(value)
        found = catalogue.faults()
    except ValidationError as error:
        found = [*field_faults(error), *faults_between(value)]
    if found:
        raise ConfigError([_fault(name, tree, path, message) for path, message in found])
    return catalogue


def _fault(name: str, tree: Any, path: tuple[str | int, ...], message: str) -> str:
    field = ".".join(str(p) for p in path if p != "[key]") or "(file)"
    return f"{name}:{_line(tree, path)}: {field}: {message}"


def _line(node: Any, path: tuple[str | int, ...]) -> int:
    """The line of the deepest part of `path` that the file has."""
    line = node.lc.line + 1
    for part in path:
        if isinstance(node, CommentedMap) and part in node:
            line = node.lc.key(part)[0] + 1
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line = node.lc.item(part)[0] + 1
        else:
            break
        node = node[part]
    return int(line)


def _log_fault(error: ConfigError) -> None:
    logger.error("configuration is faulty, the last good one stays in use:\n%s", error)


class LiveCatalogue:
    """The catalogue in use. `current` is replaced as a whole: a request keeps the one it began
    with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.current = load(path)
        self.faults: list[str] = []
        """Of the file as it lies there now; empty while it is the one in use."""

    async def watch(
        self,
        on_change: Callable[[Catalogue], None] = lambda _: None,
        on_fault: Callable[[ConfigError], None] = _log_fault,
    ) -> None:
        """Runs for ever: takes over each good change of the file, tells of each faulty one."""
        # The folder is watched: editors and ConfigMaps replace the file, which ends a watch on it.
        async for changes in awatch(self._path.parent, recursive=False):
            if any(Path(p).name in {self._path.name, "..data"} for _, p in changes):
                self.reload(on_change, on_fault)

    def reload(
        self,
        on_change: Callable[[Catalogue], None] = lambda _: None,
        on_fault: Callable[[ConfigError], None] = _log_fault,
    ) -> None:
        try:
            fresh = load(self._path)
        except ConfigError as error:
            self.faults = error.faults
            on_fault(error)
            return
        was_faulty, self.faults = bool(self.faults), []
        if fresh != self.current or was_faulty:
            self.current = fresh
            logger.info("configuration reloaded from %s", self._path)
            on_change(fresh)
