import socket

from penstock.local.ports import BLOCK_PORTS, claim_block, is_free


def test_two_heads_never_share_a_port() -> None:
    one, other = claim_block(), claim_block()
    ranges = [one.http, one.grpc, other.http, other.grpc]
    ports = [p for first, last in ranges for p in range(first, last + 1)]
    assert len(ports) == len(set(ports)) == 2 * BLOCK_PORTS
    one.release()
    other.release()


def test_a_released_block_can_be_claimed_again() -> None:
    one = claim_block()
    one.release()
    one.release()
    again = claim_block()
    assert again.first == one.first
    again.release()


def test_a_block_in_which_somebody_listens_is_passed_over() -> None:
    free = claim_block()
    with socket.socket(socket.AF_INET6) as listener:
        # REUSEADDR: connections of the port's last user may not be quite forgotten.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("::", free.grpc[0]))
        listener.listen()
        assert not is_free(free.grpc[0])
        free.release()
        other = claim_block()
        assert other.first != free.first
        other.release()
