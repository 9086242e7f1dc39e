"""vLLM's outputs of one request to deltas, with the counts over all its choices. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.core.errors import UpstreamFailed
from penstock.local.engines.base import Delta, choice_count
from penstock.local.engines.chat import is_call_forced, offered_tools
from penstock.local.engines.tool_calls import TextReader
from penstock.type.v1 import chat_pb2

LOGPROB_MIN = -9999.0
"""In place of minus infinity, which JSON cannot say; what OpenAI sends, too."""

_FINISH = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
}

TokenBytes = Callable[[int], bytes]


class Tally:
    """One request: fed with vLLM's RequestOutputs in delta mode, in their order."""

    def __init__(
        self,
        chat: chat_pb2.ChatInput,
        *,
        prompt_tokens: int,
        token_bytes: TokenBytes,
        request_id: str,
    ) -> None:
        self._top = chat.top_logprobs
        self._token_bytes = token_bytes
        self._prompt_tokens = prompt_tokens
        self._cached: int | None = None
        forced = is_call_forced(chat)
        allowed = bool(offered_tools(chat)) and not forced
        self._readers = [
            TextReader(f"call-{request_id}-{choice}-", allowed=allowed, forced=forced)
            for choice in range(choice_count(chat))
        ]
        self.completion_tokens = 0

    def add(self, output: Any) -> Delta:
        """What a vllm.RequestOutput adds.

        Raises:
            UpstreamFailed: vLLM gave the request up.
        """
        for completion in output.outputs:
            self.completion_tokens += len(completion.token_ids)
        cached = output.num_cached_tokens or 0
        # The choices read one prompt: those after the first find it in the cache.
        self._cached = cached if self._cached is None else min(self._cached, cached)
        return Delta(
            choices=tuple(d for c in output.outputs if (d := self._choice(c)) is not None),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def last(self) -> Delta:
        """The delta with the usage, after all outputs."""
        usage = chat_pb2.Usage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=min(self._cached or 0, self._prompt_tokens),
            completion_tokens=self.completion_tokens,
        )
        return Delta(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.completion_tokens,
            usage=usage,
        )

    def _choice(self, completion: Any) -> chat_pb2.ChoiceDelta | None:
        ended = completion.finish_reason
        if ended is not None and ended not in _FINISH:
            raise UpstreamFailed(f"vLLM ended the request by itself: {ended}")
        reader = self._readers[completion.index]
        talk, calls = reader.feed(completion.text, last=ended is not None)
        finish = _FINISH[ended] if ended is not None else chat_pb2.FINISH_REASON_UNSPECIFIED
        if finish == chat_pb2.FINISH_REASON_STOP and reader.called:
            finish = chat_pb2.FINISH_REASON_TOOL_CALLS
        delta = chat_pb2.ChoiceDelta(
            index=completion.index,
            content=talk,
            tool_calls=calls,
            logprobs=self._logprobs(completion.token_ids, completion.logprobs),
            finish_reason=finish,
        )
        has_more = delta.content or delta.tool_calls or delta.logprobs or delta.finish_reason
        return delta if has_more else None

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[Mapping[int, Any]] | None
    ) -> list[chat_pb2.TokenLogprob]:
        if positions is None:
            return []
        return [
            self._position(token, alternatives)
            for token, alternatives in zip(token_ids, positions, strict=True)
        ]

    def _position(self, token: int, alternatives: Mapping[int, Any]) -> chat_pb2.TokenLogprob:
        # vLLM adds the chosen token to the most likely ones; its rank tells whether it is one.
        top = sorted(alternatives.items(), key=lambda item: item[1].rank)
        return chat_pb2.TokenLogprob(
            token=self._text(token, alternatives[token]),
            logprob=max(alternatives[token].logprob, LOGPROB_MIN),
            token_bytes=self._token_bytes(token),
            top_logprobs=[
                chat_pb2.TopLogprob(
                    token=self._text(other, found),
                    logprob=max(found.logprob, LOGPROB_MIN),
                    token_bytes=self._token_bytes(other),
                )
                for other, found in top[: self._top]
            ],
        )

    def _text(self, token: int, found: Any) -> str:
        if found.decoded_token is not None:
            return str(found.decoded_token)
        return self._token_bytes(token).decode(errors="replace")
