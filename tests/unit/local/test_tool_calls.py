"""Tool calls out of text, whatever the pieces in which it comes."""

import json

import pytest

from penstock.local.engines.tool_calls import TextReader

CALL = '{"name": "weather", "arguments": {"city": "Rome", "in": {"unit": "C"}}}'


def read(pieces: list[str], *, allowed: bool = True, forced: bool = False) -> tuple[str, list]:
    """(talk, [(id, name, arguments)]) of the whole text."""
    reader = TextReader("call-", allowed=allowed, forced=forced)
    talk, calls = "", {}
    for place, piece in enumerate(pieces):
        more, deltas = reader.feed(piece, last=place == len(pieces) - 1)
        talk += more
        for delta in deltas:
            known = calls.setdefault(delta.index, ["", "", ""])
            known[0] += delta.id
            known[1] += delta.name
            known[2] += delta.arguments_json
    assert reader.called == bool(calls)
    return talk, [tuple(calls[index]) for index in sorted(calls)]


def cuts(text: str) -> list[list[str]]:
    """The text whole, letter by letter, and cut once at every place."""
    return [[text], list(text), *([text[:i], text[i:]] for i in range(1, len(text)))]


def test_a_forced_call_is_read_whatever_the_pieces() -> None:
    for pieces in cuts(CALL):
        talk, calls = read(pieces, forced=True)
        assert talk == ""
        [(call_id, name, arguments)] = calls
        assert (call_id, name) == ("call-0", "weather")
        assert json.loads(arguments) == {"city": "Rome", "in": {"unit": "C"}}


def test_arguments_come_before_the_call_ends() -> None:
    reader = TextReader("call-", allowed=True, forced=True)
    _, first = reader.feed('{"name":"weather","arguments":{"city":"Ro', last=False)
    assert [(d.name, d.arguments_json) for d in first] == [("weather", ""), ("", '{"city":"Ro')]


def test_talk_and_calls_are_told_apart_whatever_the_pieces() -> None:
    text = f"I look. <tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>"
    for pieces in cuts(text):
        talk, calls = read(pieces)
        assert talk == "I look. "
        assert [(c[0], c[1]) for c in calls] == [("call-0", "weather"), ("call-1", "weather")]
        for call in calls:
            assert json.loads(call[2])["city"] == "Rome"


def test_fields_in_another_order_are_a_call_too() -> None:
    swapped = '<tool_call>{"arguments": {"city": "Rome"}, "name": "weather"}</tool_call>'
    for pieces in cuts(swapped):
        talk, [(_, name, arguments)] = read(pieces)
        assert (talk, name, json.loads(arguments)) == ("", "weather", {"city": "Rome"})


@pytest.mark.parametrize(
    "text",
    [
        "a < b, and <tool_ is no tag",
        "ends with <tool_c",
        "<tool_call>this is no call</tool_call>",
        '<tool_call>{"name": 7, "arguments": {}}</tool_call> and more',
        "<tool_call>never closed",
    ],
)
def test_what_is_no_call_is_talk_and_loses_nothing(text: str) -> None:
    for pieces in cuts(text):
        assert read(pieces) == (text, [])


def test_without_tools_all_is_talk() -> None:
    assert read([f"<tool_call>{CALL}</tool_call>"], allowed=False) == (
        f"<tool_call>{CALL}</tool_call>",
        [],
    )


def test_a_call_that_is_cut_short_keeps_what_was_written() -> None:
    cut = '{"name":"weather","arguments":{"city":{"of":"Rome"}'
    for pieces in cuts(cut):
        _, [(_, name, arguments)] = read(pieces, forced=True)
        assert (name, arguments) == ("weather", '{"city":{"of":"Rome"}')


def test_a_forced_call_that_never_began_is_talk() -> None:
    assert read(['{"na'], forced=True) == ('{"na', [])
