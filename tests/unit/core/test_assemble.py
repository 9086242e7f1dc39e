from penstock.core.assemble import Assembler, replay, text_of
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    TokenLogprob,
    ToolCallDelta,
)


def test_deltas_of_several_choices_become_choices():
    a = Assembler()
    a.add([ChoiceDelta(index=1, content="b"), ChoiceDelta(index=0, content="a")])
    a.add([ChoiceDelta(index=0, content="c", finish_reason=FINISH_REASON_STOP)])
    assert not a.complete(2)
    a.add([ChoiceDelta(index=1, finish_reason=FINISH_REASON_LENGTH)])
    assert a.complete(2)
    assert ["ac", "b"] == [text_of(c.message) for c in a.choices()]


def test_pieces_of_tool_calls_are_joined():
    a = Assembler()
    a.add([ChoiceDelta(tool_calls=[ToolCallDelta(index=0, id="c1", name="f")])])
    a.add([ChoiceDelta(tool_calls=[ToolCallDelta(index=0, arguments_json='{"x"')])])
    a.add(
        [
            ChoiceDelta(
                tool_calls=[ToolCallDelta(index=0, arguments_json=":1}")],
                finish_reason=FINISH_REASON_TOOL_CALLS,
            )
        ]
    )
    call = a.choices()[0].message.tool_calls[0]
    assert ("c1", "f", '{"x":1}') == (call.id, call.name, call.arguments_json)


def test_a_replayed_answer_is_the_same_answer():
    first = Assembler()
    first.add(
        [
            ChoiceDelta(
                content="long " * 200,
                logprobs=[TokenLogprob(token="long", logprob=-0.5)],
                tool_calls=[ToolCallDelta(index=0, id="c1", name="f", arguments_json="{}")],
                finish_reason=FINISH_REASON_STOP,
            ),
            ChoiceDelta(index=1, refusal="no", finish_reason=FINISH_REASON_STOP),
        ]
    )
    second = Assembler()
    second.add(replay(first.choices()))
    assert first.choices() == second.choices()
    assert second.complete(2)
