"""Joins the deltas that came within one moment: a message costs more than a token. Pure."""

from collections.abc import Iterable

from penstock.type.v1.chat_pb2 import ChoiceDelta


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
            same[0].id = same[0].id or piece.id
            same[0].name += piece.name
            same[0].arguments_json += piece.arguments_json
        else:
            both.tool_calls.append(piece)
    return both
