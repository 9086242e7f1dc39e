"""Prepared messages: while it is measured, a load generator must not pay for building them."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.ids import uuid7
from penstock.quota.v1 import quota_pb2
from penstock.type.v1 import chat_pb2

HELD_NANO_USD = 1_000_000
POSTED_NANO_USD = 600_000
TTL_MS = 600_000
PROVIDER = "openai"
MODEL = "gpt-4o-mini"


@dataclass(frozen=True, slots=True)
class Pair:
    """A reserve and its settle, each a BatchRequest of one operation.

    Serialized messages may be concatenated: their repeated fields then follow each other. So a
    batch is a join of these.
    """

    number: int
    reserve: bytes
    settle: bytes


def reserve_id(number: int) -> int:
    """The operation id of pair `number`'s reserve; its settle's is one more."""
    return 2 * number + 2


def pairs_of(key_ids: Sequence[int], count: int, provider: str = PROVIDER) -> list[Pair]:
    """On the keys in turn."""
    made = []
    for number in range(count):
        id_ = uuid7()
        reserve = quota_pb2.ReserveRequest(
            reservation_id=id_,
            request_id=f"req_{id_}",
            attempt=1,
            key_id=f"key_{key_ids[number % len(key_ids)]}",
            pool=quota_pb2.POOL_KIND_PAID,
            provider=provider,
            model=MODEL,
            amount_nano_usd=HELD_NANO_USD,
            tokens=600,
            ttl_ms=TTL_MS,
        )
        settle = quota_pb2.SettleRequest(
            reservation_id=id_,
            amount_nano_usd=POSTED_NANO_USD,
            usage=chat_pb2.Usage(prompt_tokens=400, completion_tokens=120),
            outcome="ok",
            trace_id="0af7651916cd43dd8448eb211c80319c",
            key_id=reserve.key_id,
        )
        operation_id = reserve_id(number)
        made.append(
            Pair(
                number,
                _alone(quota_pb2.Operation(operation_id=operation_id, reserve=reserve)),
                _alone(quota_pb2.Operation(operation_id=operation_id + 1, settle=settle)),
            )
        )
    return made


def _alone(operation: quota_pb2.Operation) -> bytes:
    return quota_pb2.BatchRequest(operations=[operation]).SerializeToString()
