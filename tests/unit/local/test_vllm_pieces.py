"""The parts of the vLLM engine that need no vLLM: prompts, counts, tokens, the CPU's variables."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.engine.asking import ask
from penstock.core.errors import InvalidRequest, UpstreamFailed
from penstock.local.engines import vllm_cpu
from penstock.local.engines.base import EngineSettings
from penstock.local.engines.chat import offered_tools
from penstock.local.engines.vllm_output import LOGPROB_MIN, Tally
from penstock.local.engines.vllm_prompt import PromptMaker, call_schema
from penstock.local.engines.vllm_tokens import TokenBytes, byte_of_character
from penstock.type.v1 import chat_pb2


class FakeTokenizer:
    """Characters are tokens; the template prints what it is given."""

    def __init__(self, *, knows_tools: bool, byte_level: bool = False) -> None:
        self.chat_template = "{{ tools }}" if knows_tools else "{{ messages }}"
        self.backend_tokenizer = SimpleNamespace(decoder="ByteLevel()" if byte_level else "")
        self.seen: dict = {}

    def apply_chat_template(self, messages, *, tools, add_generation_prompt, tokenize) -> str:
        assert add_generation_prompt
        assert not tokenize
        if messages[0]["content"] == "raise":
            raise ValueError("roles must alternate")
        self.seen = {"messages": messages, "tools": tools}
        return "<s>"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return {0: "Ġsea", 1: "Ã", 2: "<|end|>", 3: "<0x0A>", 4: "▁sea"}.get(token)


def with_tool(**fields: object) -> chat_pb2.ChatInput:
    chat = ask("Weather in Rome?", **fields)
    chat.tools.add(name="weather", description="of a city", parameters_json='{"type": "object"}')
    return chat


def test_a_template_writes_the_special_tokens_itself() -> None:
    assert PromptMaker(FakeTokenizer(knows_tools=True)).token_ids(ask("Hi")) == [60, 115, 62]


def test_a_raw_prompt_is_encoded_without_the_template() -> None:
    raw = chat_pb2.ChatInput(prompt="ab")
    assert PromptMaker(FakeTokenizer(knows_tools=True)).token_ids(raw) == [1, 97, 98]


def test_a_template_that_knows_tools_gets_them() -> None:
    tokenizer = FakeTokenizer(knows_tools=True)
    chat = with_tool()
    called = chat.messages.add(role=chat_pb2.ROLE_ASSISTANT)
    called.tool_calls.add(id="c1", name="weather", arguments_json='{"city": "Rome"}')
    PromptMaker(tokenizer).token_ids(chat)
    assert tokenizer.seen["tools"][0]["function"]["name"] == "weather"
    call = tokenizer.seen["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Rome"}}


def test_a_template_without_tools_gets_them_as_text() -> None:
    tokenizer = FakeTokenizer(knows_tools=False)
    chat = with_tool()
    called = chat.messages.add(role=chat_pb2.ROLE_ASSISTANT)
    called.tool_calls.add(id="c1", name="weather", arguments_json='{"city": "Rome"}')
    told = chat.messages.add(role=chat_pb2.ROLE_TOOL, tool_call_id="c1")
    told.content.add(text="sunny")
    PromptMaker(tokenizer).token_ids(chat)
    system, _, assistant, result = tokenizer.seen["messages"]
    assert tokenizer.seen["tools"] is None
    assert system["role"] == "system"
    assert '"name": "weather"' in system["content"]
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in assistant["content"]
    assert (result["role"], "sunny" in result["content"]) == ("user", True)


def test_tools_join_the_system_message_that_is_there() -> None:
    tokenizer = FakeTokenizer(knows_tools=False)
    chat = with_tool()
    chat.messages[0].role = chat_pb2.ROLE_DEVELOPER
    PromptMaker(tokenizer).token_ids(chat)
    [message] = tokenizer.seen["messages"]
    assert message["content"].startswith("Weather in Rome?\n\n")


def test_what_the_template_raises_is_told_to_the_caller() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        PromptMaker(FakeTokenizer(knows_tools=True)).token_ids(ask("raise"))
    assert caught.value.violations[0].field == "input.messages"


def test_the_schema_of_a_call_names_each_tool() -> None:
    chat = with_tool()
    chat.tools.add(name="time")
    names = [s["properties"]["name"]["const"] for s in call_schema(offered_tools(chat))["anyOf"]]
    assert names == ["weather", "time"]


def output(*completions: SimpleNamespace, cached: int = 0) -> SimpleNamespace:
    return SimpleNamespace(outputs=list(completions), num_cached_tokens=cached)


def piece(
    text: str, tokens: list[int], *, index: int = 0, end: str | None = None, logprobs=None
) -> SimpleNamespace:
    return SimpleNamespace(
        index=index, text=text, token_ids=tokens, finish_reason=end, logprobs=logprobs
    )


def tally_of(chat: chat_pb2.ChatInput) -> Tally:
    return Tally(chat, prompt_tokens=9, token_bytes=lambda t: b"%d" % t, request_id="r")


def test_counts_are_summed_over_the_choices_and_the_prompt_is_counted_once() -> None:
    tally = tally_of(ask("Hi", n=2))
    tally.add(output(piece("a", [1]), cached=0))
    tally.add(output(piece("b", [1, 2], index=1), cached=8))
    tally.add(output(piece("", [3], end="stop")))
    last = tally.add(output(piece("c", [3], index=1, end="length")))
    assert last.completion_tokens == 5
    assert last.choices[0].finish_reason == chat_pb2.FINISH_REASON_LENGTH
    usage = tally.last().usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens) == (9, 0, 5)


def test_a_piece_that_says_nothing_still_counts() -> None:
    delta = tally_of(ask("Hi")).add(output(piece("", [1])))
    assert (delta.choices, delta.completion_tokens, delta.prompt_tokens) == ((), 1, 9)


def test_an_end_that_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(UpstreamFailed, match="abort"):
        tally_of(ask("Hi")).add(output(piece("", [], end="abort")))


def test_a_forced_call_ends_with_tool_calls() -> None:
    chat = with_tool()
    chat.tool_choice.mode = chat_pb2.ToolChoice.MODE_REQUIRED
    text = '{"name":"weather","arguments":{"city":"Rome"}}'
    (delta,) = tally_of(chat).add(output(piece(text, [1], end="stop"))).choices
    assert delta.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert delta.content == ""
    assert "".join(c.arguments_json for c in delta.tool_calls) == '{"city":"Rome"}'


def test_logprobs_hold_the_taken_token_and_only_the_wanted_top() -> None:
    found = {
        5: SimpleNamespace(logprob=-3.0, rank=3, decoded_token="c"),
        6: SimpleNamespace(logprob=-0.1, rank=1, decoded_token="a"),
        7: SimpleNamespace(logprob=float("-inf"), rank=2, decoded_token=None),
    }
    chat = ask("Hi", logprobs=True, top_logprobs=2)
    (delta,) = tally_of(chat).add(output(piece("c", [5], logprobs=[found]))).choices
    (token,) = delta.logprobs
    assert (token.token, token.logprob, token.token_bytes) == ("c", -3.0, b"5")
    assert [(t.token, t.logprob) for t in token.top_logprobs] == [("a", -0.1), ("7", LOGPROB_MIN)]


@pytest.mark.parametrize(
    ("byte_level", "token", "expected"),
    [
        (True, 0, b" sea"),
        (True, 1, b"\xc3"),
        (True, 2, b"<|end|>"),
        (False, 3, b"\n"),
        (False, 4, b" sea"),
        (False, 99, b""),
    ],
)
def test_the_bytes_of_a_token(byte_level: bool, token: int, expected: bytes) -> None:
    tokenizer = FakeTokenizer(knows_tools=False, byte_level=byte_level)
    assert expected == TokenBytes(tokenizer)(token)


def test_every_byte_has_one_character() -> None:
    assert sorted(byte_of_character().values()) == list(range(256))


def settings(*, threads: int) -> EngineSettings:
    return EngineSettings("m", Path(), context_tokens=2048, slots=4, threads=threads)


def config_folder(folder: Path) -> Path:
    shape = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (folder / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": 30}))
    return folder


def test_the_cache_holds_every_slots_whole_context(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    # 2 × 30 layers × 3 heads × 64 values × 2 bytes = 23,040 bytes a token.
    assert vllm_cpu.cache_gib_of(folder, context_tokens=2048, slots=4) == 1
    assert vllm_cpu.cache_gib_of(folder, context_tokens=131_072 - 128, slots=4) == 12


def test_without_a_readable_config_the_cache_is_left_to_vllm(tmp_path: Path) -> None:
    assert vllm_cpu.cache_gib_of(tmp_path, context_tokens=2048, slots=4) is None


def test_threads_are_bound_only_when_they_take_the_whole_machine() -> None:
    assert vllm_cpu._threads(2, [4, 6]) == {"VLLM_CPU_OMP_THREADS_BIND": "4,6"}
    assert vllm_cpu._threads(1, [4, 6]) == {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }


def test_what_the_operator_has_set_stays_but_not_rays_thread_count(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    env = {"VLLM_CPU_KVCACHE_SPACE": "8", "OMP_NUM_THREADS": "7"}
    found = vllm_cpu.environment(settings(threads=1), folder, env)
    assert "VLLM_CPU_KVCACHE_SPACE" not in found
    assert found.get("OMP_NUM_THREADS", "1") == "1"
