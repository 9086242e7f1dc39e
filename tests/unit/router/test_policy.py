from dataclasses import replace

import pytest

from penstock.core.catalogue import Catalogue
from penstock.core.deadline import Deadline
from penstock.core.errors import (
    CapacityExhausted,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
)
from penstock.router.backends.base import PoolView, ProviderView, Views
from penstock.router.policy import Ask, Plan, Reason, after, plan, refusal, resolve
from penstock.type.v1.chat_pb2 import Tool, ToolChoice
from support.chat import CATALOGUE_YAML, catalogue, chat
from support.clock import HandClock

TOOLS = {"tools": [Tool(name="look")]}
UNUSED = {**TOOLS, "tool_choice": ToolChoice(mode=ToolChoice.MODE_NONE)}
WITHOUT_TOOLS = catalogue(CATALOGUE_YAML.replace("supports_tools: true", "supports_tools: false"))

FREE = PoolView(ready_replicas=1, free_slots=2, queue_room=4)
ON = ProviderView(label="acme", enabled=True)
PAUSED = Views({"small": FREE}, {"acme": replace(ON, retry_after_seconds=7)})


def ask(*, seconds: float = 60, local_only: bool = False, n: int = 1, **fields: object) -> Ask:
    return Ask(chat(n=n, **fields), n, local_only, Deadline.after(seconds, HandClock()))


def views(pool: PoolView = FREE, provider: ProviderView = ON) -> Views:
    return Views({"small": pool}, {"acme": provider})


def planned(name: str, the_ask: Ask, the_views: Views, known: Catalogue | None = None) -> Plan:
    known = known or catalogue()
    return plan(the_ask, resolve(name, known, []), known, the_views)


def routed(name: str, the_ask: Ask, the_views: Views) -> list[tuple[str, str]]:
    return [(a.provider, a.reason) for a in planned(name, the_ask, the_views).attempts]


@pytest.mark.parametrize(
    ("name", "the_ask", "the_views", "expected"),
    [
        ("auto", ask(), views(), [("local", "local_first"), ("acme", "fallback")]),
        (
            "auto",
            ask(),
            views(PoolView()),
            [("acme", "spill_no_replica"), ("local", "fallback")],
        ),
        (
            "auto",
            ask(),
            views(PoolView(ready_replicas=1)),
            [("acme", "spill_full"), ("local", "fallback")],
        ),
        (
            "auto",
            ask(seconds=5),
            views(PoolView(ready_replicas=1, queue_room=1, expected_wait_ms=6000)),
            [("acme", "spill_wait"), ("local", "fallback")],
        ),
        (
            "auto",
            ask(seconds=10),
            views(PoolView(ready_replicas=1, queue_room=1, expected_wait_ms=6000)),
            [("local", "local_first"), ("acme", "fallback")],
        ),
        ("auto", ask(local_only=True), views(), [("local", "local_first")]),
        ("auto", ask(local_only=True), views(PoolView()), [("local", "only_target")]),
        ("own", ask(), views(PoolView(ready_replicas=1)), [("local", "only_target")]),
        ("local/small", ask(), views(PoolView(ready_replicas=1)), [("local", "pinned")]),
        ("acme/large", ask(), views(), [("acme", "pinned")]),
        ("auto", ask(), views(provider=ProviderView("acme")), [("local", "local_first")]),
        ("auto", ask(max_tokens=300), views(), [("acme", "first_target")]),
        ("auto", ask(n=3), views(), [("acme", "first_target")]),
    ],
)
def test_a_request_goes_where_the_rules_say(name, the_ask, the_views, expected):
    assert expected == routed(name, the_ask, the_views)


@pytest.mark.parametrize("pool", [FREE, PoolView(ready_replicas=1), PoolView()])
@pytest.mark.parametrize("name", ["own", "local/small"])
def test_where_nothing_follows_a_pool_is_waited_for_up_to_a_margin_before_the_deadline(name, pool):
    found = planned(name, ask(seconds=10), views(pool))
    assert [9.5] == [a.wait_seconds_max for a in found.attempts]


@pytest.mark.parametrize(
    ("pool", "waits"),
    [(FREE, [("local", 0.0), ("acme", 0.0)]), (PoolView(), [("acme", 0.0), ("local", 9.5)])],
)
def test_a_pool_is_not_waited_for_where_another_target_follows(pool, waits):
    found = planned("auto", ask(seconds=10), views(pool))
    assert waits == [(a.provider, a.wait_seconds_max) for a in found.attempts]


@pytest.mark.parametrize(
    ("fields", "known", "expected"),
    [
        (TOOLS, WITHOUT_TOOLS, [("acme", "first_target")]),
        (UNUSED, WITHOUT_TOOLS, [("local", "local_first"), ("acme", "fallback")]),
        (TOOLS, catalogue(), [("local", "local_first"), ("acme", "fallback")]),
    ],
)
def test_tools_are_only_offered_to_who_can_call_them(fields, known, expected):
    found = planned("auto", ask(**fields), views(), known)
    assert expected == [(a.provider, a.reason) for a in found.attempts]


@pytest.mark.parametrize("provider", [ON, ProviderView("acme")])
@pytest.mark.parametrize(
    ("name", "local_only"), [("local/small", False), ("own", False), ("auto", True)]
)
def test_tools_that_nobody_may_call_are_told_by_field_model_and_remedy(name, local_only, provider):
    the_ask = ask(local_only=local_only, **TOOLS)
    found = planned(name, the_ask, views(provider=provider), WITHOUT_TOOLS)
    told = refusal(the_ask, resolve(name, WITHOUT_TOOLS, []), found, WITHOUT_TOOLS)
    assert isinstance(told, InvalidRequest)
    assert ["input.tools"] == [v.field for v in told.violations]
    for part in ("local/small: tools_unsupported", "supports_tools", "tool_choice to none"):
        assert part in told.message


def test_the_hold_is_the_dearest_that_the_attempt_can_cost():
    route = resolve("acme/large", catalogue(), [])
    attempt = plan(ask(n=2, max_tokens=7), route, catalogue(), views()).attempts[0]
    bound = 64 + 8 + len("hello")  # the template's constants, and the bytes of the text
    assert bound == attempt.prompt_tokens_bound
    assert bound * 10_000 + 2 * 7 * 40_000 == attempt.cost_bound_nano_usd


def test_without_max_tokens_the_catalogues_bound_is_sent():
    route = resolve("acme/large", catalogue(), [])
    assert 500 == plan(ask(), route, catalogue(), views()).attempts[0].max_tokens


@pytest.mark.parametrize(
    ("name", "the_ask", "the_views", "error", "says"),
    [
        (
            "auto",
            ask(max_tokens=501),
            views(),
            InvalidRequest,
            "input.max_tokens: 501 is more than the",
        ),
        (
            "auto",
            ask(max_tokens=101, local_only=True),
            views(),
            InvalidRequest,
            "input.max_tokens: 101 is more than the model's 100;",
        ),
        ("local/small", ask(n=3), views(), InvalidRequest, "input.n: 3 is more than the 2 slots"),
        ("acme/large", ask(local_only=True), views(), FailedPrecondition, "local-only"),
        (
            "acme/large",
            ask(),
            views(provider=ProviderView("acme")),
            FailedPrecondition,
            "paid side is off",
        ),
        (
            "acme/large",
            ask(),
            views(provider=ProviderView("acme", enabled=True, retry_after_seconds=7)),
            CapacityExhausted,
            "nothing can answer now",
        ),
    ],
)
def test_a_request_that_nothing_may_answer_is_told_why(name, the_ask, the_views, error, says):
    route = resolve(name, catalogue(), [])
    found = plan(the_ask, route, catalogue(), the_views)
    told = refusal(the_ask, route, found, catalogue())
    assert isinstance(told, error)
    assert says in told.message


@pytest.mark.parametrize(
    ("name", "the_ask"),
    [
        ("acme/large", ask()),
        ("auto", ask(max_tokens=101)),
        ("auto", ask(n=3)),
    ],
)
def test_what_a_paused_provider_would_answer_says_when_to_come_back(name, the_ask):
    route = resolve(name, catalogue(), [])
    told = refusal(the_ask, route, planned(name, the_ask, PAUSED), catalogue())
    assert (CapacityExhausted, 7) == (type(told), told.retry_after_seconds)


def test_what_a_paused_provider_would_refuse_is_told_at_once():
    the_ask = ask(max_tokens=501)
    route = resolve("auto", catalogue(), [])
    told = refusal(the_ask, route, planned("auto", the_ask, PAUSED), catalogue())
    assert "501 is more than the model's 500" in told.message


def test_an_unknown_model_is_not_found():
    with pytest.raises(NotFound, match="'nope' is neither an alias"):
        resolve("nope", catalogue(), [])


def test_a_key_reaches_only_its_targets_through_an_alias():
    assert ("local/small",) == resolve("auto", catalogue(), ["local/*"]).targets
    assert ("local/small", "acme/large") == resolve("auto", catalogue(), ["auto"]).targets


def test_a_key_that_may_use_none_of_the_targets_is_refused():
    with pytest.raises(PermissionDenied, match="may not use 'acme/large'"):
        resolve("acme/large", catalogue(), ["local/*"])


def test_a_pool_that_refused_was_full_after_all():
    route = resolve("auto", catalogue(), [])
    second = plan(ask(), route, catalogue(), views()).attempts[1]
    assert Reason.SPILL_FULL == after(second, CapacityExhausted("full")).reason
    assert Reason.FALLBACK == after(second, FailedPrecondition("broken")).reason
