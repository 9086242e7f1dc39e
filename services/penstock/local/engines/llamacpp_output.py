"""The chunks of llama.cpp's server, which are OpenAI's JSON, to deltas. Pure."""

from collections.abc import Mapping
from typing import Any

from penstock.local.engines.base import Delta, choice_count
from penstock.local.engines.llamacpp_wire import error_of
from penstock.local.engines.stops import StopReader
from penstock.type.v1 import chat_pb2

_FINISH = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.FINISH_REASON_TOOL_CALLS,
}


class Tally:
    """One request: fed with its chunks in their order. Llama.cpp reports each choice by itself.

    Stop sequences are found here. Llama.cpp would say nothing while it holds text back for one,
    and a hang-up is noticed only when it says something.
    """

    def __init__(self, chat: chat_pb2.ChatInput) -> None:
        self._chat = chat
        choices = range(choice_count(chat))
        self._stops = [StopReader(chat.stop) for _ in choices]
        self._made = [0 for _ in choices]
        self._going_on = set(choices)
        self._finished = 0
        """The choice that the next usage is of."""
        self._cached: int | None = None
        self._prompt_tokens = 0
        self.is_prompt_read = False
        self.tokens_per_second = 0.0

    @property
    def complete(self) -> bool:
        """Every choice has ended: what llama.cpp may still say is of no interest."""
        return not self._going_on

    def add(self, chunk: Mapping[str, Any]) -> Delta | None:
        """What a chunk adds; None: nothing.

        Raises:
            PenstockError: it is llama.cpp's error.
        """
        if "error" in chunk:
            raise error_of(chunk["error"], self._chat)
        before = (self._prompt_tokens, sum(self._made))
        self._count(chunk)
        found = (self._choice(choice) for choice in chunk.get("choices") or ())
        choices = tuple(delta for delta in found if delta is not None)
        if chunk.get("usage"):
            self._going_on.discard(self._finished)
        has_more = choices or before != (self._prompt_tokens, sum(self._made))
        return self._delta(choices) if has_more else None

    def last(self) -> Delta:
        """The delta with the usage, once all is complete."""
        usage = chat_pb2.Usage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached or 0,
            completion_tokens=sum(self._made),
        )
        return self._delta((), usage)

    def _delta(
        self, choices: tuple[chat_pb2.ChoiceDelta, ...], usage: chat_pb2.Usage | None = None
    ) -> Delta:
        return Delta(
            choices=choices,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(self._made),
            usage=usage,
        )

    def _count(self, chunk: Mapping[str, Any]) -> None:
        if progress := chunk.get("prompt_progress"):
            self._prompt_tokens = progress["total"]
            self.is_prompt_read = progress["processed"] >= progress["total"]
            # The prompt is read once: the choices after the first find it in the cache.
            cached = progress["cache"]
            self._cached = cached if self._cached is None else min(self._cached, cached)
        timings = chunk.get("timings") or {}
        choices = chunk.get("choices") or ()
        index = choices[0].get("index", 0) if choices else self._finished
        # A choice that was stopped here goes on in llama.cpp while there are others.
        if timings and not self._stops[index].stopped:
            self._made[index] = timings["predicted_n"]
            self.tokens_per_second = float(timings["predicted_per_second"])

    def _choice(self, choice: Mapping[str, Any]) -> chat_pb2.ChoiceDelta | None:
        """One choice of a chunk; None where it carries nothing (role-only, progress)."""
        index = choice.get("index", 0)
        finish = _FINISH.get(choice.get("finish_reason") or "", chat_pb2.FINISH_REASON_UNSPECIFIED)
        if finish:
            self._finished = index
        stops = self._stops[index]
        if stops.stopped:
            return None
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        content = stops.feed(text, last=bool(finish))
        if stops.stopped:
            finish = chat_pb2.FINISH_REASON_STOP
            self._going_on.discard(index)
        out = chat_pb2.ChoiceDelta(
            index=index,
            content=content,
            finish_reason=finish,
            tool_calls=[_tool_call(c) for c in delta.get("tool_calls") or ()],
            logprobs=[
                _logprob(t, self._chat.top_logprobs)
                for t in (choice.get("logprobs") or {}).get("content") or ()
            ],
        )
        has_more = out.content or out.finish_reason or out.tool_calls or out.logprobs
        return out if has_more else None


def _tool_call(call: Mapping[str, Any]) -> chat_pb2.ToolCallDelta:
    function = call.get("function") or {}
    return chat_pb2.ToolCallDelta(
        index=call.get("index", 0),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments_json=function.get("arguments") or "",
    )


def _logprob(token: Mapping[str, Any], top: int) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=token["token"],
        logprob=token["logprob"],
        token_bytes=bytes(token.get("bytes") or ()),
        top_logprobs=[
            chat_pb2.TopLogprob(
                token=other["token"],
                logprob=other["logprob"],
                token_bytes=bytes(other.get("bytes") or ()),
            )
            for other in (token.get("top_logprobs") or ())[:top]
        ],
    )
