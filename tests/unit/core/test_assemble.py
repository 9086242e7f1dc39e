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


def test_a_replay_comes_in_pieces_with_the_logprobs_of_the_tokens_in_them():
    first = Assembler()
    tokens = [TokenLogprob(token="long ", logprob=-n) for n in range(200)]
    call = ToolCallDelta(index=0, id="c1", name="f", arguments_json="a" * 1_000)
    first.add([ChoiceDelta(content="long " * 200, logprobs=tokens)])
    first.add([ChoiceDelta(refusal="no " * 200, tool_calls=[call])])
    first.add([ChoiceDelta(finish_reason=FINISH_REASON_STOP)])
    deltas = list(replay(first.choices()))
    texts = [d for d in deltas if d.content]
    assert [256, 256, 256, 232] == [len(d.content) for d in texts]
    assert [52, 51, 51, 46] == [len(d.logprobs) for d in texts]
    assert [256, 256, 88] == [len(d.refusal) for d in deltas if d.refusal]
    pieces = [c for d in deltas for c in d.tool_calls]
    assert [0, 256, 256, 256, 232] == [len(c.arguments_json) for c in pieces]
    second = Assembler()
    second.add(deltas)
    assert first.choices() == second.choices()
