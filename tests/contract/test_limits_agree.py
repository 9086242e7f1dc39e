"""What the router takes, the services behind it take too: nothing is refused at the second door."""

from penstock.core import ids
from penstock.core.catalogue import STAND_IN_SUFFIX
from penstock.quota import wire
from penstock.quota.v1.quota_pb2 import POOL_KIND_PAID, ReserveRequest, SettleRequest
from penstock.router.estimate import REPORTED_TOKENS_MAX
from penstock.router.validation import request as limits
from penstock.type.v1.chat_pb2 import Usage

NAME_CHARACTERS_MAX = 64
"""Of a provider or a model; see `core.catalogue`."""


def test_a_reserve_with_the_longest_texts_of_a_request_is_well_formed() -> None:
    tags = {
        f"{n:0{limits.LABEL_KEY_CHARACTERS_MAX}}": "é" * limits.LABEL_VALUE_CHARACTERS_MAX
        for n in range(limits.LABELS_MAX)
    }
    reserve = wire.parse_reserve(
        ReserveRequest(
            reservation_id=ids.uuid7(),
            request_id=ids.request_id(),
            attempt=1,
            key_id="key_1",
            pool=POOL_KIND_PAID,
            provider="p" * NAME_CHARACTERS_MAX + STAND_IN_SUFFIX,
            model="m" * NAME_CHARACTERS_MAX,
            ttl_ms=1,
            user="u" * limits.USER_CHARACTERS_MAX,
            tags=tags,
        )
    )
    assert tags == reserve.tags


def test_a_settle_of_the_largest_report_that_is_believed_is_well_formed() -> None:
    usage = Usage(prompt_tokens=REPORTED_TOKENS_MAX, completion_tokens=REPORTED_TOKENS_MAX)
    request = SettleRequest(reservation_id=ids.uuid7(), usage=usage, key_id="key_1")
    settle = wire.parse_settle(request)
    assert REPORTED_TOKENS_MAX == settle.completion_tokens
