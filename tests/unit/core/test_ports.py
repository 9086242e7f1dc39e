import socket

from penstock.core.ports import free_ports, why_taken
from support.tcp import free_port


def test_ports_that_are_asked_for_together_are_different() -> None:
    ports = free_ports(500)

    assert len(set(ports)) == 500


def test_a_port_that_is_listened_on_is_not_offered() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()
        taken = listener.getsockname()[1]

        assert why_taken("127.0.0.1", taken) is not None
        assert taken not in free_ports(500)
