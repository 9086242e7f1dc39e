"""docs/calling.md says what the router says: each reason, with its codes, and each header."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core import errors
from penstock.core.errors import PenstockError
from penstock.quota import refusals
from penstock.router.front import receipt_headers
from penstock.router.http.errors import STATUS_OF_REASON
from penstock.router.policy import Reason
from penstock.router.v1.router_pb2 import Receipt
from penstock.type.v1.chat_pb2 import Usage

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "calling.md").read_text()
PACKAGE = ROOT / "services" / "penstock"
SPOKEN_BY = [*(PACKAGE / "router").rglob("*.py"), PACKAGE / "core" / "interceptors.py"]

KINDS = {kind.__name__: kind for kind in PenstockError.__subclasses__()}
OF_RESERVE = (
    "KEY_REVOKED",
    "KEY_EXPIRED",
    "ACCOUNT_SUSPENDED",
    "BUDGET_MISSING",
    "DEADLINE_EXCEEDED",
)
"""What the ledger says to a reserve and the router hands on, beside its refusals."""
BETWEEN_SERVICES = {"SERVICE_TOKEN_INVALID"}
ROW = re.compile(r"^\| (`[A-Z_`, ]+`) \| `([A-Z_]+)` \| (\d+) \|", re.MULTILINE)


def assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of each assignment, also of those to several names at once."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))


def texts(value: ast.expr, tree: ast.Module) -> Iterator[str]:
    """What an expression may be: its constants, and those of the names in it."""
    for part in ast.walk(value):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name):
            for name, given in assigned(tree):
                if name == part.id and isinstance(given, ast.Constant):
                    yield str(given.value)


def raised() -> Iterator[tuple[str, type[PenstockError]]]:
    """(reason, kind) of each error that is made with a reason of its own."""
    for path in SPOKEN_BY:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            kind = KINDS.get(node.func.id if isinstance(node.func, ast.Name) else name)
            for keyword in node.keywords:
                if kind is not None and keyword.arg == "reason":
                    yield from ((reason, kind) for reason in texts(keyword.value, tree))


def spoken() -> dict[str, set[tuple[str, int]]]:
    """By reason: the gRPC codes and the HTTP statuses that it comes with, whoever says it."""
    pairs = [(kind.default_reason, kind) for kind in KINDS.values()]
    pairs += [(reason, refusals._REASONS[reason][0]) for reason in OF_RESERVE]
    found: dict[str, set[tuple[str, int]]] = {}
    for reason, kind in [*pairs, *raised()]:
        status = STATUS_OF_REASON.get(reason, kind.http_status)
        found.setdefault(reason, set()).add((kind.code.name, status))
    return found


def on_page() -> dict[str, tuple[str, int]]:
    return {
        reason: (code, int(status))
        for reasons, code, status in ROW.findall(PAGE)
        for reason in re.findall(r"[A-Z_]+", reasons)
    }


def test_each_reason_with_its_codes() -> None:
    told = on_page()
    raised_reasons = {reason for reason, _ in raised()} - BETWEEN_SERVICES
    assert raised_reasons <= told.keys()
    known = spoken()
    assert {r: {told[r]} for r in told if r in known} == {r: known[r] for r in told if r in known}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("UPSTREAM_TIMEOUT", errors.UpstreamFailed),  # by a variable
        ("ENGINE_DEAD", errors.UpstreamFailed),  # by a constant
        ("CONTEXT_LENGTH_EXCEEDED", errors.InvalidRequest),  # in a condition
    ],
)
def test_a_reason_is_found_however_it_is_written(reason: str, kind: type[PenstockError]) -> None:
    assert (reason, kind) in set(raised())


@pytest.mark.parametrize("reason", sorted(on_page()))
def test_no_reason_that_is_not_in_the_code(reason: str) -> None:
    sources = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if "v1" not in path.parts)
    assert f'"{reason}"' in sources


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_of_a_route(reason: Reason) -> None:
    assert f"`{reason}`" in PAGE


def test_each_header_of_an_answer() -> None:
    names = receipt_headers(Receipt(), Usage())
    assert [name for name in names if f"`{name}`" not in PAGE] == []
