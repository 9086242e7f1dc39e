"""What a request's flow tells its front, in this order: Started, Delta…, Done. Or an error, at
any point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.router.v1.router_pb2 import Receipt
from penstock.type.v1.chat_pb2 import ChoiceDelta, Usage


@dataclass(frozen=True, slots=True)
class Started:
    """Before the first delta: what answers."""

    request_id: str
    provider: str
    model: str
    created_unix_seconds: int


@dataclass(frozen=True, slots=True)
class Delta:
    deltas: Sequence[ChoiceDelta]


@dataclass(frozen=True, slots=True)
class Done:
    usage: Usage
    receipt: Receipt


Event = Started | Delta | Done
