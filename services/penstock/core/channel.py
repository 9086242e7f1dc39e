"""gRPC channels to our own services: bearer token, message limits, keep-alive."""

from collections.abc import Sequence

import grpc

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
"""Of any message between our own services: a batch of requests of the greatest size fits."""

KEEPALIVE_MS = 20_000
"""Finds a peer that vanished without a word well within a request's default deadline."""

Metadata = Sequence[tuple[str, str]]


_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A service that was restarted is found again within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


def connect(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel to host:port; it connects when first used and reconnects by itself.

    With `credentials` it speaks TLS; without, plain text.
    """
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
