"""The style that a reader may rely on: sizes, and who imports whom."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "services" / "penstock"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
LINE_CHARS_MAX = 100

SERVICES = ("router", "quota", "cache", "capacity", "local", "traces")

LIBRARIES = ("core", "type", "client")
"""What anybody may import; `client` is for programs, and for the command line."""

COMMAND_LINE_MAY = ("penstock.quota.audit", "penstock.traces")
"""What a service offers to the operator's tool, beside its `v1`."""

_PRAGMA = re.compile(r"\s+# (noqa|type: ignore|fmt: skip).*")
"""Directives to tools are not read by people, and cannot be broken."""

HEAVY = ("ray", "vllm", "xllamacpp", "torch", "transformers")
HEAVY_HOME = PACKAGE / "local"


def _is_generated(path: Path) -> bool:
    return "v1" in path.parts


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if not _is_generated(p))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EVERYTHING = [*SOURCES, *TESTS]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module), `from a import b` as a.b: b may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _may_import(importer: str, module: str) -> bool:
    parts = module.split(".")
    if parts[0] != "penstock" or len(parts) < 2:
        return True
    if importer == "core":
        return parts[1] in {"core", "type"}
    if parts[1] == importer or parts[1] in LIBRARIES:
        return True
    if parts[1] in SERVICES and parts[2:3] == ["v1"]:
        return True
    return importer == "cli" and module.startswith(COMMAND_LINE_MAY)


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 50
    assert len(TESTS) > 20


@pytest.mark.parametrize("path", EVERYTHING, ids=_name)
def test_files_functions_and_lines_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    faults = [f"{len(lines)} lines"] if len(lines) > FILE_LINES_MAX else []
    faults += [
        f"line {number}: {len(line)} characters"
        for number, line in enumerate(lines, 1)
        if len(_PRAGMA.sub("", line)) > LINE_CHARS_MAX
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES_MAX:
                faults.append(f"line {node.lineno}: {node.name} has {size} lines")
    assert [] == faults


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_keep_to_their_layer(path: Path) -> None:
    importer = path.relative_to(PACKAGE).parts[0]
    faults = [
        f"line {line}: {importer} imports {module}"
        for line, module in _imports(path)
        if not _may_import(importer, module)
    ]
    assert [] == faults


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_heavy_packages_are_imported_by_the_local_part_alone(path: Path) -> None:
    faults = [
        f"line {line}: {module}"
        for line, module in _imports(path)
        if module.split(".")[0] in HEAVY and HEAVY_HOME not in path.parents
    ]
    assert [] == faults


@pytest.mark.parametrize(
    ("importer", "module", "allowed"),
    [
        ("core", "penstock.quota.v1.quota_pb2", False),
        ("core", "penstock.type.v1.chat_pb2", True),
        ("router", "penstock.quota.v1.quota_pb2", True),
        ("router", "penstock.quota.ledger", False),
        ("quota", "penstock.core.money", True),
        ("cli", "penstock.quota.audit", True),
        ("cli", "penstock.quota.ledger", False),
        ("quota", "penstock.cli.app", False),
        ("router", "asyncio", True),
    ],
)
def test_the_rule_of_layers(importer: str, module: str, *, allowed: bool) -> None:
    assert allowed == _may_import(importer, module)


def test_the_lock_is_made_of_what_the_package_declares() -> None:
    """Its dependencies, its extras and what builds it; `hub` is for those who want it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = dict(project["project"]["optional-dependencies"])
    del extras["hub"]
    declared = project["build-system"]["requires"] + project["project"]["dependencies"]
    declared += [requirement for extra in extras.values() for requirement in extra]
    lines = (ROOT / "requirements" / "penstock.in").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]

    def names(requirements: list[str]) -> list[str]:
        return sorted(re.split(r"[\[<>=;]", line)[0] for line in requirements)

    assert names(declared) == names(wanted)


def test_no_package_index_is_named() -> None:
    """A lock with an index's address would send everybody there, whatever they have configured."""
    found = [
        f"{_name(path)}:{number}"
        for path in [*(ROOT / "requirements").iterdir(), ROOT / "Makefile", ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "index-url" in line.replace("--no-emit-index-url", "") or "://" in line
    ]
    assert [] == found
