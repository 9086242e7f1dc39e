"""The small typed client that other Python services use.

    from penstock.client import BudgetExceeded, Client, user

    async with Client("127.0.0.1:7070", api_key) as client:
        reply = await client.generate("auto", [user("What is 7 times 8?")], max_tokens=20)
        print(reply.text, reply.provider, reply.reason, reply.cost_nano_usd)

        async with client.stream("auto", [user("Write one sentence about the sea.")]) as stream:
            async for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.reply.cost_nano_usd)

Money is int nano-USD. Every failure is a `PenstockError`: branch on its class or `reason`;
`message` names the field, the limit and the remedy; `retry_after_seconds` says when to come again.
Calls that fail with UNAVAILABLE before anything was delivered or charged are repeated with growing
pauses; nothing else is. Leaving `stream` early, or cancelling the task, stops the model at once:
what was made until then is charged.
"""

from penstock.client.client import Client, Options
from penstock.client.messages import assistant, developer, function, image, system, tool, user
from penstock.client.reply import Piece, Reply
from penstock.client.retry import Retry
from penstock.client.stream import Stream
from penstock.core.errors import (
    BudgetExceeded,
    Cancelled,
    CapacityExhausted,
    Conflict,
    CreditExhausted,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidRequest,
    NotFound,
    PenstockError,
    PermissionDenied,
    RateLimited,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
    UpstreamRateLimited,
)

__all__ = [
    "BudgetExceeded",
    "Cancelled",
    "CapacityExhausted",
    "Client",
    "Conflict",
    "CreditExhausted",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidRequest",
    "NotFound",
    "Options",
    "PenstockError",
    "PermissionDenied",
    "Piece",
    "RateLimited",
    "Reply",
    "Retry",
    "Stream",
    "StreamBroken",
    "Unauthenticated",
    "Unavailable",
    "UpstreamFailed",
    "UpstreamRateLimited",
    "assistant",
    "developer",
    "function",
    "image",
    "system",
    "tool",
    "user",
]
