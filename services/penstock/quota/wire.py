"""Proto ⇄ domain for the operations. It only decides whether a message is well formed."""

from datetime import UTC, datetime
from math import ceil

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from penstock.core.errors import PenstockError
from penstock.quota import ledger
from penstock.quota.account import (
    Key,
    KeyState,
    format_budget_id,
    format_id,
    format_limit_id,
)
from penstock.quota.checks import Faults
from penstock.quota.ledger import (
    TOKENS_MAX,
    TTL_MS_MAX,
    Answer,
    Extend,
    Operation,
    Pool,
    Reserve,
    Settle,
    Void,
)
from penstock.quota.refusals import BudgetRefused, CreditRefused, RateRefused
from penstock.quota.v1 import quota_pb2

ATTEMPTS_MAX = 1_000
TEXT_LENGTH_MAX = 256
PROVIDER_LENGTH_MAX = 128
"""A name of the catalogue, and what is added to it: "openai-stand-in"."""
TAGS_MAX = 32
TAG_VALUE_LENGTH_MAX = 512
"""What the router takes, and OpenAI: what passed there must not be refused here."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_POOLS: dict[int, Pool] = {
    quota_pb2.POOL_KIND_LOCAL: "local",
    quota_pb2.POOL_KIND_PAID: "paid",
    quota_pb2.POOL_KIND_CACHE: "cache",
}
_STATES: dict[KeyState, quota_pb2.Principal.State.ValueType] = {
    "active": quota_pb2.Principal.STATE_ACTIVE,
    "revoked": quota_pb2.Principal.STATE_REVOKED,
    "expired": quota_pb2.Principal.STATE_EXPIRED,
    "suspended": quota_pb2.Principal.STATE_SUSPENDED,
}


def parse_reserve(message: quota_pb2.ReserveRequest) -> Reserve:
    """Raises InvalidRequest with every fault."""
    faults = Faults()
    pool = _POOLS.get(message.pool)
    if pool is None:
        faults.add("pool", "POOL_INVALID", "takes POOL_KIND_LOCAL, _PAID or _CACHE")
    elif pool == "cache" and (message.amount_nano_usd or message.tokens):
        faults.add("pool", "POOL_INVALID", "an answer from the cache costs 0 and counts no tokens")
    tags = dict(message.tags.items()) if message.tags else {}
    if len(tags) > TAGS_MAX:
        faults.add("tags", "TAGS_INVALID", f"takes at most {TAGS_MAX} tags")
    for name, value in tags.items():
        faults.text(f"tags[{name[:32]!r}]", name, length_min=1, length_max=64)
        faults.text(f"tags[{name[:32]!r}]", value, length_max=TAG_VALUE_LENGTH_MAX)
    reserve = Reserve(
        reservation_id=message.reservation_id,
        id_unix_ms=faults.uuid7("reservation_id", message.reservation_id),
        request_id=faults.text("request_id", message.request_id, length_min=1, length_max=128),
        attempt=faults.integer("attempt", message.attempt, low=1, high=ATTEMPTS_MAX),
        key_id=faults.account("key_id", message.key_id, "key"),
        pool=pool or "paid",
        provider=faults.text(
            "provider", message.provider, length_min=1, length_max=PROVIDER_LENGTH_MAX
        ),
        model=faults.text("model", message.model, length_min=1, length_max=TEXT_LENGTH_MAX),
        amount_nano_usd=faults.amount("amount_nano_usd", message.amount_nano_usd),
        tokens=faults.integer("tokens", message.tokens, low=0, high=TOKENS_MAX),
        ttl_ms=faults.integer("ttl_ms", message.ttl_ms, low=1, high=TTL_MS_MAX),
        end_user=faults.text("user", message.user, length_max=TEXT_LENGTH_MAX),
        tags=tags,
    )
    faults.check()
    return reserve


def parse_extend(message: quota_pb2.ExtendRequest) -> Extend:
    """Raises InvalidRequest with every fault."""
    faults = Faults()
    extend = Extend(
        reservation_id=message.reservation_id,
        id_unix_ms=faults.uuid7("reservation_id", message.reservation_id),
        amount_nano_usd=faults.amount("amount_nano_usd", message.amount_nano_usd),
        tokens=faults.integer("tokens", message.tokens, low=0, high=TOKENS_MAX),
        ttl_ms=faults.integer("ttl_ms", message.ttl_ms, low=1, high=TTL_MS_MAX),
        key_id=faults.account("key_id", message.key_id, "key"),
    )
    faults.check()
    return extend


def parse_settle(message: quota_pb2.SettleRequest, *, by_operator: bool = False) -> Settle:
    """Raises InvalidRequest with every fault. An operator need not say whose it is."""
    faults = Faults()
    of_any = by_operator and not message.key_id
    usage = message.usage
    settle = Settle(
        reservation_id=message.reservation_id,
        id_unix_ms=faults.uuid7("reservation_id", message.reservation_id),
        amount_nano_usd=faults.amount("amount_nano_usd", message.amount_nano_usd),
        prompt_tokens=_tokens(faults, "prompt_tokens", usage.prompt_tokens),
        cached_prompt_tokens=_tokens(faults, "cached_prompt_tokens", usage.cached_prompt_tokens),
        completion_tokens=_tokens(faults, "completion_tokens", usage.completion_tokens),
        reasoning_tokens=_tokens(faults, "reasoning_tokens", usage.reasoning_tokens),
        estimated=usage.estimated,
        outcome=faults.text("outcome", message.outcome, length_max=128),
        trace_id=faults.text("trace_id", message.trace_id, length_max=64),
        key_id=None if of_any else faults.account("key_id", message.key_id, "key"),
    )
    faults.check()
    return settle


def parse_void(message: quota_pb2.VoidRequest) -> Void:
    """Raises InvalidRequest with every fault."""
    faults = Faults()
    void = Void(
        reservation_id=message.reservation_id,
        id_unix_ms=faults.uuid7("reservation_id", message.reservation_id),
        outcome=faults.text("reason", message.reason, length_max=128),
        key_id=faults.account("key_id", message.key_id, "key"),
    )
    faults.check()
    return void


def parse_operation(message: quota_pb2.Operation) -> Operation:
    """Raises InvalidRequest with every fault of the one operation."""
    match message.WhichOneof("operation"):
        case "reserve":
            return parse_reserve(message.reserve)
        case "settle":
            return parse_settle(message.settle)
        case "void":
            return parse_void(message.void)
        case "extend":
            return parse_extend(message.extend)
        case _:
            faults = Faults()
            faults.add(
                "operation", "OPERATION_MISSING", "takes one of reserve, extend, settle and void"
            )
            faults.check()
            raise AssertionError


def reserve_response(operation: Operation, answer: Answer) -> quota_pb2.ReserveResponse:
    return quota_pb2.ReserveResponse(
        reservation_id=operation.reservation_id,
        remaining_nano_usd=answer.remaining_nano_usd,
        # What was counted at once holds nothing.
        expires_at=None if answer.expires_at is None else _timestamp(answer.expires_at),
    )


def extend_response(answer: Answer) -> quota_pb2.ExtendResponse:
    assert answer.expires_at is not None
    return quota_pb2.ExtendResponse(
        amount_nano_usd=answer.amount_nano_usd,
        remaining_nano_usd=answer.remaining_nano_usd,
        expires_at=_timestamp(answer.expires_at),
    )


def settle_response(answer: Answer) -> quota_pb2.SettleResponse:
    return quota_pb2.SettleResponse(
        posted_nano_usd=answer.posted_nano_usd,
        released_nano_usd=answer.released_nano_usd,
        overage=answer.overage,
        late=answer.late,
    )


def void_response(answer: Answer) -> quota_pb2.VoidResponse:
    return quota_pb2.VoidResponse(released_nano_usd=answer.released_nano_usd)


def result(operation_id: int, operation: Operation, answer: Answer) -> quota_pb2.OperationResult:
    match operation:
        case ledger.Reserve():
            return quota_pb2.OperationResult(
                operation_id=operation_id, reserve=reserve_response(operation, answer)
            )
        case ledger.Extend():
            return quota_pb2.OperationResult(
                operation_id=operation_id, extend=extend_response(answer)
            )
        case ledger.Settle():
            return quota_pb2.OperationResult(
                operation_id=operation_id, settle=settle_response(answer)
            )
        case ledger.Void():
            return quota_pb2.OperationResult(operation_id=operation_id, void=void_response(answer))


def error_result(operation_id: int, error: PenstockError) -> quota_pb2.OperationResult:
    told = quota_pb2.OperationError(
        code=code_pb2.Code.Value(error.code.name),
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
    )
    match error:
        case BudgetRefused():
            told.refusal.CopyFrom(_budget_refusal(error))
        case RateRefused():
            told.rate.CopyFrom(_rate_refusal(error))
        case CreditRefused():
            told.credit.CopyFrom(_credit_refusal(error))
    return quota_pb2.OperationResult(operation_id=operation_id, error=told)


def principal(key: Key) -> quota_pb2.Principal:
    message = quota_pb2.Principal(
        key_id=format_id("key", key.id),
        org_id=format_id("org", key.org_id),
        team_id=format_id("team", key.team_id),
        name=key.name,
        state=_STATES[key.state],
        allowed_models=key.policy.allowed_models,
        local_only=key.policy.local_only,
        fail_open_local=key.policy.fail_open_local,
        counts_requests=key.counts_requests,
    )
    if key.policy.expires_at is not None:
        message.expires_at.FromDatetime(key.policy.expires_at)
    return message


def state_of(key: Key) -> quota_pb2.Principal.State.ValueType:
    return _STATES[key.state]


def _timestamp(at: datetime) -> Timestamp:
    """What `Timestamp.FromDatetime` makes of it, in a third of the time."""
    since = at - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def _tokens(faults: Faults, name: str, value: int) -> int:
    return faults.integer(f"usage.{name}", value, low=0, high=TOKENS_MAX)


def _budget_refusal(error: BudgetRefused) -> quota_pb2.BudgetRefusal:
    facts = error.facts
    message = quota_pb2.BudgetRefusal(
        budget_id=format_budget_id(facts.budget_id),
        budget_name=facts.budget_name,
        account_kind=facts.account_kind,
        account_id=format_id(facts.account_kind, facts.account_id),
        window=facts.window,
        limit_nano_usd=facts.limit,
        posted_nano_usd=facts.posted,
        held_nano_usd=facts.held,
        suspense_nano_usd=facts.suspense,
        requested_nano_usd=facts.requested,
    )
    if facts.resets_at is not None:
        message.resets_at.FromDatetime(facts.resets_at)
    return message


def _rate_refusal(error: RateRefused) -> quota_pb2.RateRefusal:
    facts = error.facts
    message = quota_pb2.RateRefusal(
        limit_id=format_limit_id(facts.budget_id),
        limit_name=facts.budget_name,
        account_kind=facts.account_kind,
        account_id=format_id(facts.account_kind, facts.account_id),
        unit=facts.unit,
        window=facts.window,
        limit=facts.limit,
        used=facts.used,
        requested=facts.requested,
    )
    if error.retry_after_seconds is not None:
        message.retry_after_ms = ceil(error.retry_after_seconds * 1000)
    return message


def _credit_refusal(error: CreditRefused) -> quota_pb2.CreditRefusal:
    facts = error.facts
    return quota_pb2.CreditRefusal(
        account_kind=facts.account_kind,
        account_id=format_id(facts.account_kind, facts.account_id),
        account_name=facts.account_name,
        available_nano_usd=facts.available,
        requested_nano_usd=facts.requested,
    )
