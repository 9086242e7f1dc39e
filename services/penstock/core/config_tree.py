"""A YAML text as plain values, with the line of each and every fault of the text at once.

Only the syntax is left to ruamel.yaml. The values are made here: its constructors stop at the first
fault, raise whatever their Python raises, and know no line; and what aliases and merges repeat is
counted, so that no text of a few lines fills the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Path = tuple[str | int, ...]
"""Names and places in lists, from the top."""

DEPTH_MAX = 32
"""A catalogue nests six deep."""

VALUES_MAX = 200_000
"""A catalogue of thousands of models has fewer; more is an alias of aliases of aliases."""

TOO_DEEP = f"nests more than {DEPTH_MAX} deep"

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_COLLECTIONS = {f"{_TAG}map", f"{_TAG}seq"}
_TEXT = {f"{_TAG}str", f"{_TAG}timestamp"}
"""A date is read where one is expected, and told with its field where it is none."""


class TreeError(Exception):
    """No tree can be made of the text. `line`: 0 where it is not known."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True, slots=True)
class TreeFault:
    path: Path
    line: int
    problem: str


@dataclass(slots=True)
class Tree:
    """What the text says: None, bool, int, float, str, lists, and mappings whose names are text.

    What is faulty is None in `value`.
    """

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[TreeFault] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """Of the deepest part of `path` that the text has."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def read_tree(text: str) -> Tree:
    """The tree of one YAML document; its value is None where there is nothing in it.

    Raises:
        TreeError: it is no YAML, or nests or repeats itself beyond measure.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEPTH_MAX
    yaml.composer.warn_double_anchors = False
    try:
        root = yaml.compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TreeError(line, f"a file may not hold the character {error.character!r}") from None
    except MaxDepthExceededError as error:
        raise TreeError(error.problem_mark.line + 1, TOO_DEEP) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise TreeError(line, f"no valid YAML: {error.problem}") from None
    except Exception as error:  # noqa: BLE001 - its scanner also raises what its Python raises
        raise TreeError(0, f"no valid YAML: {str(error).splitlines()[0]}") from None
    tree = Tree()
    if root is not None:
        tree.value = _Reading(yaml, tree).value(root, ())
    return tree


class _Reading:
    def __init__(self, yaml: YAML, tree: Tree) -> None:
        constructor = yaml.constructor
        self._plain: dict[str, Callable[[ScalarNode], Any]] = {
            f"{_TAG}null": lambda _: None,
            f"{_TAG}bool": constructor.construct_yaml_bool,
            f"{_TAG}int": constructor.construct_yaml_int,
            f"{_TAG}float": lambda node: float(node.value),
        }
        self._tree = tree
        self._count = 0
        self._open: list[Node] = []

    def value(self, node: Node, path: Path) -> Any:
        if isinstance(node, ScalarNode):
            self._counted(node, 1)
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            return self._faulty(node, path, _unknown_tag(node))
        self._enter(node)
        found: Any
        if isinstance(node, SequenceNode):
            found = [self._item(item, (*path, i)) for i, item in enumerate(node.value)]
        else:
            assert isinstance(node, MappingNode)
            found = {
                name: self._named(key, value, (*path, name))
                for name, (key, value) in self._pairs(node, path).items()
            }
        self._open.pop()
        return found

    def _item(self, node: Node, path: Path) -> Any:
        self._tree.lines[path] = _line(node)
        return self.value(node, path)

    def _named(self, key: Node, value: Node, path: Path) -> Any:
        self._tree.lines[path] = _line(key)
        return self.value(value, path)

    def _pairs(self, node: MappingNode, path: Path) -> dict[str, tuple[Node, Node]]:
        """Keys and values by name: its own, and what is merged into it (`<<`) where it has none."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                merged = self._merged(value, path) | merged
            elif not isinstance(key, ScalarNode):
                self._faulty(key, path, "a list or a mapping is no name")
            elif key.value in own:
                before = _line(own[key.value][0])
                self._faulty(key, (*path, key.value), f"is there twice, first in line {before}")
            else:
                own[key.value] = (key, value)
        return merged | own

    def _merged(self, node: Node, path: Path) -> dict[str, tuple[Node, Node]]:
        found: dict[str, tuple[Node, Node]] = {}
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                self._faulty(source, path, "only a mapping can be merged (<<)")
                continue
            self._enter(source)
            found = self._pairs(source, path) | found
            self._open.pop()
        return found

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if node.tag in _TEXT:
            return node.value
        if node.tag not in self._plain:
            return self._faulty(node, path, _unknown_tag(node))
        try:
            return self._plain[node.tag](node)
        except (ValueError, LookupError):
            kind = node.tag.removeprefix(_TAG)
            return self._faulty(node, path, f"{node.value[:40]!r} is no {kind}")

    def _enter(self, node: Node) -> None:
        """Paired with a pop of `_open`."""
        self._counted(node, 1 + len(node.value))
        if any(node is outer for outer in self._open):
            raise TreeError(_line(node), "an alias stands within what it repeats")
        if len(self._open) >= DEPTH_MAX:
            raise TreeError(_line(node), TOO_DEEP)
        self._open.append(node)

    def _counted(self, node: Node, values: int) -> None:
        self._count += values
        if self._count > VALUES_MAX:
            raise TreeError(
                _line(node), f"has more than {VALUES_MAX} values, repeated ones counted"
            )

    def _faulty(self, node: Node, path: Path, problem: str) -> None:
        self._tree.faults.append(TreeFault(path, _line(node), problem))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _unknown_tag(node: Node) -> str:
    return f"the tag {str(node.tag).replace(_TAG, '!!')} is not known here"
