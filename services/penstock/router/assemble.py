"""Deltas to choices, and back: one answer in its two forms. Pure."""

from collections.abc import Iterable, Sequence

from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_UNSPECIFIED,
    ROLE_ASSISTANT,
    Choice,
    ChoiceDelta,
    ContentPart,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

REPLAY_CHARACTERS = 256
"""Of one delta when a stored answer is replayed: still a stream, at few messages."""


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
                call = part.calls.setdefault(piece.index, ToolCall())
                call.id = call.id or piece.id
                call.name += piece.name
                call.arguments_json += piece.arguments_json
            if delta.finish_reason:
                part.finish_reason = delta.finish_reason

    def complete(self, choices: int) -> bool:
        """Each of the asked choices has ended with a reason of its own."""
        return len(self._parts) == choices and all(
            p.finish_reason != FINISH_REASON_UNSPECIFIED for p in self._parts.values()
        )

    def choices(self) -> list[Choice]:
        return [_choice(index, part) for index, part in sorted(self._parts.items())]


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


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.content)


def refusal_of(message: Message) -> str:
    return "".join(part.refusal for part in message.content)


def replay(choices: Sequence[Choice]) -> Iterable[ChoiceDelta]:
    """The deltas of a complete answer, as a stream would have brought them."""
    for choice in choices:
        text = text_of(choice.message)
        for start in range(0, len(text), REPLAY_CHARACTERS):
            yield ChoiceDelta(index=choice.index, content=text[start : start + REPLAY_CHARACTERS])
        yield ChoiceDelta(
            index=choice.index,
            refusal=refusal_of(choice.message),
            tool_calls=[
                ToolCallDelta(
                    index=i, id=call.id, name=call.name, arguments_json=call.arguments_json
                )
                for i, call in enumerate(choice.message.tool_calls)
            ],
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
        )
