"""Ports: remembered, picked anew where taken, and told who holds one."""

import os
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from penstock.cli import ports
from penstock.cli.errors import CliError
from penstock.cli.state import State


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    # Another Penstock of this machine may take a port of the real range at any moment; it never
    # comes to the last of those below, which Ray's heads claim from 20,000 on.
    monkeypatch.setattr(ports, "RANGE", range(31_000, 31_768))
    found = State.at(tmp_path / "state")
    found.make()
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((ports.HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_internal_ports_are_remembered_and_differ(state: State) -> None:
    first = ports.internal_ports(state)
    assert set(ports.INTERNAL) == set(first)
    assert len(first) == len(set(first.values()))
    assert first == ports.internal_ports(state)


def test_a_remembered_port_that_somebody_took_is_picked_anew(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ports.internal_ports(state)
    # The first that chance offers is one that another part remembers.
    offered = chain([first["stand_in"]], ports.RANGE)
    monkeypatch.setattr(ports.random, "choice", lambda _: next(offered))
    with socket.socket() as listener:
        listener.bind((ports.HOST, first["quota"]))
        listener.listen()
        second = ports.internal_ports(state)
    assert first["quota"] != second["quota"]
    assert {**first, "quota": second["quota"]} == second


def test_a_public_port_is_never_an_internal_one(state: State) -> None:
    first = ports.internal_ports(state)
    second = ports.internal_ports(state, (first["cache"],))
    assert first["cache"] not in second.values()


def test_a_taken_public_port_is_told_with_its_holder_and_the_variable(taken: int) -> None:
    with pytest.raises(CliError) as caught:
        ports.demand_free(ports.Public(taken, "PENSTOCK_GRPC_PORT", "--grpc-port"))
    assert f"port {taken}" in caught.value.message
    assert f"(pid {os.getpid()})" in caught.value.message
    assert "PENSTOCK_GRPC_PORT" in caught.value.remedy


def test_a_port_that_the_system_forbids_is_told_in_its_words(monkeypatch) -> None:
    monkeypatch.setattr(ports, "why_taken", lambda *_: "Permission denied")
    with pytest.raises(CliError) as caught:
        ports.demand_free(ports.Public(80, "PENSTOCK_HTTP_PORT", "--http-port"))
    assert "port 80 on 127.0.0.1 cannot be had: Permission denied" == caught.value.message
    assert "PENSTOCK_HTTP_PORT" in caught.value.remedy


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_what_is_no_port_is_told(port: int) -> None:
    with pytest.raises(CliError, match="is no port"):
        ports.demand_free(ports.Public(port, "PENSTOCK_HTTP_PORT", "--http-port"))
