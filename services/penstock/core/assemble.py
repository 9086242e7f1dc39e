"""Deltas to choices, and back: one answer in its two forms; and many deltas into few. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_UNSPECIFIED,
    ROLE_ASSISTANT,
    Choice,
    ChoiceDelta,
    ContentPart,
    FinishReason,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

PIECE_CHARACTERS = 256
"""Of one delta of a stored answer that is replayed, and of the deltas that go out in one message:
still a stream, at few messages."""


class _Part:
    def __init__(self) -> None:
        self.content: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, ToolCall] = {}
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason = FINISH_REASON_UNSPECIFIED


class Assembler:
    """Collects the deltas of an answer."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}

    def add(self, deltas: Iterable[ChoiceDelta]) -> None:
        for delta in deltas:
            part = self._parts.setdefault(delta.index, _Part())
            part.content.append(delta.content)
            part.refusal.append(delta.refusal)
            part.logprobs.extend(delta.logprobs)
            for piece in delta.tool_calls:
                _add_piece(part.calls.setdefault(piece.index, ToolCall()), piece)
            if delta.finish_reason:
                part.finish_reason = delta.finish_reason

    def complete(self, choices: int) -> bool:
        """Each of the asked choices has ended with a reason of its own."""
        return len(self._parts) == choices and all(
            p.finish_reason != FINISH_REASON_UNSPECIFIED for p in self._parts.values()
        )

    def choices(self) -> list[Choice]:
        return [_choice(index, part) for index, part in sorted(self._parts.items())]


def _add_piece(call: ToolCall | ToolCallDelta, piece: ToolCallDelta) -> None:
    call.id = call.id or piece.id
    call.name += piece.name
    call.arguments_json += piece.arguments_json


def _choice(index: int, part: _Part) -> Choice:
    content = []
    if text := "".join(part.content):
        content.append(ContentPart(text=text))
    if refusal := "".join(part.refusal):
        content.append(ContentPart(refusal=refusal))
    message = Message(
        role=ROLE_ASSISTANT,
        content=content,
        tool_calls=[call for _, call in sorted(part.calls.items())],
    )
    return Choice(
        index=index, message=message, finish_reason=part.finish_reason, logprobs=part.logprobs
    )


def finish_word(reason: FinishReason.ValueType) -> str:
    """As OpenAI and OpenTelemetry write it: "stop", "length", "tool_calls" …"""
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.content)


def refusal_of(message: Message) -> str:
    return "".join(part.refusal for part in message.content)


def replay(choices: Sequence[Choice]) -> Iterator[ChoiceDelta]:
    """The deltas of a complete answer, as a stream would have brought them."""
    for choice in choices:
        yield from _replay_text(choice)
        for piece in _cut(refusal_of(choice.message)):
            yield ChoiceDelta(index=choice.index, refusal=piece)
        for delta in _replay_calls(choice.message.tool_calls):
            yield ChoiceDelta(index=choice.index, tool_calls=[delta])
        yield ChoiceDelta(index=choice.index, finish_reason=choice.finish_reason)


def _replay_text(choice: Choice) -> Iterator[ChoiceDelta]:
    """The text, each piece with the logprobs of the tokens that begin in it."""
    told, told_characters, end = 0, 0, 0
    for piece in _cut(text_of(choice.message)):
        end += len(piece)
        first = told
        while told < len(choice.logprobs) and told_characters < end:
            told_characters += len(choice.logprobs[told].token)
            told += 1
        yield ChoiceDelta(index=choice.index, content=piece, logprobs=choice.logprobs[first:told])
    if rest := choice.logprobs[told:]:
        yield ChoiceDelta(index=choice.index, logprobs=rest)


def _replay_calls(calls: Sequence[ToolCall]) -> Iterator[ToolCallDelta]:
    for index, call in enumerate(calls):
        yield ToolCallDelta(index=index, id=call.id, name=call.name)
        for piece in _cut(call.arguments_json):
            yield ToolCallDelta(index=index, arguments_json=piece)


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def joined(deltas: Iterable[ChoiceDelta]) -> list[ChoiceDelta]:
    """One delta a choice, in the order in which the choices first spoke; nothing is lost."""
    found: dict[int, ChoiceDelta] = {}
    for delta in deltas:
        before = found.get(delta.index)
        if before is None:
            found[delta.index] = delta
        else:
            found[delta.index] = _join(before, delta)
    return list(found.values())


def _join(before: ChoiceDelta, after: ChoiceDelta) -> ChoiceDelta:
    both = ChoiceDelta(
        index=before.index,
        content=before.content + after.content,
        refusal=before.refusal + after.refusal,
        tool_calls=before.tool_calls,
        logprobs=[*before.logprobs, *after.logprobs],
        finish_reason=after.finish_reason or before.finish_reason,
    )
    for piece in after.tool_calls:
        same = [call for call in both.tool_calls if call.index == piece.index]
        if same:
            _add_piece(same[0], piece)
        else:
            both.tool_calls.append(piece)
    return both
