"""What a new user is promised: a real model answers, a repeat is free, money is exact."""

import asyncio
import contextlib
import json
import os
import signal
from uuid import uuid4

import grpc
import openai
import pytest

from penstock.core.status import from_rpc_error
from penstock.router.v1.router_pb2 import CACHE_VERDICT_HIT, CACHE_VERDICT_MISS
from penstock.traces import latest, load
from support.wait import until

pytestmark = pytest.mark.e2e

PAID = "openai/gpt-4o-mini"
SEA = "Write one sentence about the sea."


def unique(text: str = SEA) -> str:
    """A prompt that no test asked before."""
    return f"{text} ({uuid4().hex[:8]})"


async def test_the_local_model_answers_and_a_repeat_is_a_hit_at_cost_nothing(router):
    prompt = unique()
    first = await router.generate(prompt)
    assert ("local", "smollm2-135m", "local_first", CACHE_VERDICT_MISS) == (
        first.receipt.provider,
        first.receipt.model,
        first.receipt.reason,
        first.receipt.cache,
    )
    assert first.choices[0].message.content[0].text
    assert first.receipt.cost_nano_usd > 0
    second = await router.generate(prompt)
    assert (CACHE_VERDICT_HIT, 0) == (second.receipt.cache, second.receipt.cost_nano_usd)
    assert second.receipt.saved_nano_usd > 0
    assert first.choices == second.choices


async def test_reply_ledger_trace_and_usage_agree_to_the_nano(stack, router):
    key = stack.new_key("exact", budget_usd="1.00")
    reply = await router.with_key(key.secret).generate(unique(), model=PAID)
    receipt = reply.receipt
    assert ("openai-stand-in", "pinned", True) == (
        receipt.provider,
        receipt.reason,
        receipt.settled,
    )
    usage = reply.usage
    fresh = usage.prompt_tokens - usage.cached_prompt_tokens
    expected = fresh * 150 + usage.cached_prompt_tokens * 75 + usage.completion_tokens * 600
    assert expected == receipt.cost_nano_usd
    rows = stack.usage(key.id)
    assert [expected] == [r["posted_nano_usd"] for r in rows]
    trace = stack.json("trace", receipt.request_id)
    costs = [s["attributes"].get("penstock.cost_nano_usd", 0) for s in trace["spans"]]
    assert expected == sum(costs)


async def test_a_spent_budget_is_named_costs_nothing_and_still_gets_the_cache(stack, router):
    key = stack.new_key("poor", budget_usd="0.00004")
    caller = router.with_key(key.secret)
    prompt = unique()
    first = await caller.generate(prompt)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.generate(unique(), model=PAID, max_tokens=100)
    error = from_rpc_error(caught.value)
    assert ("BUDGET_EXCEEDED", "poor-total", "never") == (
        error.reason,
        error.metadata["budget_name"],
        error.metadata["resets_at"],
    )
    again = await caller.generate(prompt)
    assert CACHE_VERDICT_HIT == again.receipt.cache
    rows = stack.usage(key.id)
    assert first.receipt.cost_nano_usd == sum(r["posted_nano_usd"] for r in rows)
    assert 0 == sum(r["held_nano_usd"] for r in rows)


async def test_a_full_local_pool_spills_and_says_why(router):
    # Four slots and four places in the queue; a ninth long answer has nowhere to go but out.
    async def long(_: int) -> str:
        prompt = unique("Tell a long story about a lighthouse.")
        reply = await router.generate(prompt, max_tokens=200, temperature=1)
        return f"{reply.receipt.provider}:{reply.receipt.reason}"

    told = await asyncio.gather(*(long(i) for i in range(12)))
    assert 12 == len(told)
    spilled = [t for t in told if t.startswith("openai-stand-in:spill_full")]
    assert 4 <= len(spilled)
    assert [t for t in told if t.startswith("local:")]


async def test_a_local_stream_that_is_hung_up_is_billed_what_was_made(stack, router):
    key = stack.new_key("hangup-local", budget_usd="1.00")
    call = router.with_key(key.secret).stream(unique("Tell a long story."), max_tokens=900)
    for _ in range(4):
        await call.read()
    call.cancel()
    row = await settled_row(stack, key.id)
    assert 0 < row["completion_tokens"] < 900
    assert 0 == row["estimated_nano_usd"]
    assert row["prompt_tokens"] * 10 + row["completion_tokens"] * 40 == row["posted_nano_usd"]


async def test_a_paid_stream_that_is_hung_up_is_billed_a_bound_marked_estimated(stack, router):
    key = stack.new_key("hangup-paid", budget_usd="1.00")
    call = router.with_key(key.secret).stream(
        unique("Tell a long story."), model=PAID, max_tokens=900
    )
    for _ in range(4):
        await call.read()
    call.cancel()
    row = await settled_row(stack, key.id)
    assert 0 < row["posted_nano_usd"] == row["estimated_nano_usd"]


async def settled_row(stack, key_id: str) -> dict:
    """The key's usage, once nothing of it is held."""

    def settled() -> bool:
        rows = stack.usage(key_id)
        return bool(rows) and not rows[0]["held_nano_usd"]

    await until(settled)
    return stack.usage(key_id)[0]


def test_the_official_sdk_works_streaming_and_not(sdk):
    prompt = unique()
    plain = sdk.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": prompt}], max_tokens=16
    )
    assert "local" == plain.penstock["provider"]
    assert plain.usage.completion_tokens > 0
    chunks = list(
        sdk.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert plain.choices[0].message.content == text
    assert "hit" == chunks[-1].penstock["cache"]
    assert plain.usage.completion_tokens == chunks[-1].usage.completion_tokens


def test_the_official_sdk_gets_its_own_errors(sdk):
    with pytest.raises(openai.NotFoundError, match="nope"):
        sdk.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        sdk.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "x"}], max_tokens=10**7
        )
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="ps-wrong").models.list()


def test_json_schema_output_is_json(sdk):
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    reply = sdk.chat.completions.create(
        model="local/smollm2-135m",
        messages=[{"role": "user", "content": unique("What is 7 times 8?")}],
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert isinstance(json.loads(reply.choices[0].message.content)["answer"], int)


async def test_the_sum_of_span_costs_is_the_sum_that_was_posted(stack):
    """Over every request until here, hang-ups and refusals included."""
    folder = stack.state / "traces"
    posted = stack.json("usage")["total_posted_nano_usd"]

    def traced() -> int:
        traces = [load(folder, e.trace_id) for e in latest(folder, 1000)]
        spans = [span for trace in traces if trace for span in trace.spans]
        return sum(int(s.attributes.get("penstock.cost_nano_usd", 0)) for s in spans)

    # Spans come in up to a second after their answers.
    await until(lambda: traced() >= posted)
    assert 0 < posted == traced()


async def test_a_killed_replica_spills_and_comes_back(stack, router):
    replica = next(p for p in stack.processes() if "ServeReplica" in " ".join(p.cmdline()))
    replica.send_signal(signal.SIGKILL)
    reply = await router.generate(unique())
    assert ("openai-stand-in", True) == (
        reply.receipt.provider,
        reply.receipt.reason in {"spill_no_replica", "fallback"},
    )

    async def answered_locally() -> bool:
        return "local" == (await router.generate(unique())).receipt.provider

    await until(answered_locally, timeout_seconds=120)


def test_status_tells_ready_and_target_replicas(stack):
    found = stack.json("status")["replicas"]["local/smollm2-135m"]
    assert (1, 1) == (found["ready"], found["target"])


async def test_a_part_that_dies_while_the_file_is_faulty_starts_with_the_last_good_one(
    stack, router
):
    def is_faulty() -> bool:
        return bool(stack.json("status")["config_faults"])

    stack.configure(n_max=4)
    await until(lambda: not is_faulty(), timeout_seconds=60)
    stack.configure(n_max="many")
    killed = stack.pid("router")
    os.kill(killed, signal.SIGKILL)

    async def refused() -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.generate(unique(), n=5)
        return str(caught.value.details())

    async def is_back() -> bool:
        return "input.n" in await refused()

    await until(is_back, timeout_seconds=60)
    assert killed != stack.pid("router")
    assert is_faulty()
    stack.configure(n_max=8)
    await until(lambda: not is_faulty(), timeout_seconds=60)


@pytest.mark.parametrize("service", ["quota", "cache", "capacity", "router"])
async def test_a_killed_service_comes_back_and_the_ledger_still_balances(stack, router, service):
    os.kill(stack.pid(service), signal.SIGKILL)

    async def answered() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await router.generate(unique())
            return True
        return False

    await until(answered, timeout_seconds=60)
    audit = stack.command("quota", "audit")
    assert 0 == audit.returncode, audit.stdout + audit.stderr
