"""Reads tool calls out of a model's text as it comes, for engines that return plain text.

A call is written as `{"name": "…", "arguments": {…}}`: bare where the grammar forces one, between
`<tool_call>` and `</tool_call>` where the model is free to call or to talk. Pure.
"""

import json
import re

from penstock.local.engines.stops import overlap
from penstock.type.v1 import chat_pb2

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_TAIL = re.compile(r"[\s}]*\Z")


class CallReader:
    """One call: its id and name as soon as they are known, its arguments as they come."""

    def __init__(self, index: int, call_id: str) -> None:
        self._index = index
        self._id = call_id
        self._held = ""
        """Text that is not passed on yet: the head, later the closing braces."""
        self._arguments = ""
        self._started = False

    def feed(self, text: str) -> list[chat_pb2.ToolCallDelta]:
        self._held += text
        found = []
        if not self._started:
            head = _HEAD.match(self._held)
            if head is None:
                return []
            self._held = self._held[head.end() :]
            self._started = True
            found.append(self._first(json.loads(head.group(1), strict=False)))
        # The last brace closes the envelope, not the arguments: closing braces wait for the end.
        tail = _TAIL.search(self._held)
        assert tail is not None
        ready, self._held = self._held[: tail.start()], self._held[tail.start() :]
        if ready:
            self._arguments += ready
            found.append(chat_pb2.ToolCallDelta(index=self._index, arguments_json=ready))
        return found

    def _first(self, name: str) -> chat_pb2.ToolCallDelta:
        return chat_pb2.ToolCallDelta(index=self._index, id=self._id, name=name)

    def end(self) -> list[chat_pb2.ToolCallDelta] | None:
        """The rest of the call; None: this was no call, and nothing of it has been passed on."""
        if not self._started:
            return self._whole()
        rest = self._held.rstrip()
        inner = rest.removesuffix("}").rstrip()
        # A generation that was cut short has no envelope to take off.
        rest = inner if _is_json(self._arguments + inner) else rest
        return [chat_pb2.ToolCallDelta(index=self._index, arguments_json=rest)] if rest else []

    def _whole(self) -> list[chat_pb2.ToolCallDelta] | None:
        """A call whose fields came in another order."""
        try:
            call = json.loads(self._held)
        except ValueError:
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        delta = self._first(call["name"])
        delta.arguments_json = json.dumps(call.get("arguments", {}), ensure_ascii=False)
        return [delta]

    @property
    def held(self) -> str:
        return self._held


class TextReader:
    """The text of one choice: what is talk, and what is a call.

    With `forced` the whole text is one call; with neither `forced` nor `allowed` all is talk.
    """

    def __init__(self, call_id_prefix: str, *, allowed: bool, forced: bool) -> None:
        self._prefix = call_id_prefix
        self._allowed = allowed
        self._forced = forced
        self._calls = 0
        self._pending = ""
        """The start of what may be a tag."""
        self._reader: CallReader | None = self._next() if forced else None
        self.called = False

    def _next(self) -> CallReader:
        index = self._calls
        self._calls += 1
        return CallReader(index, f"{self._prefix}{index}")

    def feed(self, text: str, *, last: bool) -> tuple[str, list[chat_pb2.ToolCallDelta]]:
        """(talk, pieces of calls) that `text` adds; after `last` nothing is held back."""
        talk: list[str] = []
        calls: list[chat_pb2.ToolCallDelta] = []
        if not (self._allowed or self._forced):
            return text, calls
        if self._forced:
            self._into(text, calls)
        else:
            self._split(text, talk, calls)
        if last:
            if self._pending and self._reader is None:
                talk.append(self._pending)
            elif self._pending:
                self._into(self._pending, calls)
            self._pending = ""
            self._close(talk, calls, tag="")
        self.called = self.called or bool(calls)
        return "".join(talk), calls

    def _split(self, text: str, talk: list[str], calls: list[chat_pb2.ToolCallDelta]) -> None:
        self._pending += text
        while True:
            tag = OPEN if self._reader is None else CLOSE
            before, found, after = self._pending.partition(tag)
            if not found:
                break
            self._out(before, talk, calls)
            self._pending = after
            if self._reader is None:
                self._reader = self._next()
            else:
                self._close(talk, calls, tag=CLOSE)
        keep = overlap(self._pending, tag)
        ready = self._pending[: len(self._pending) - keep]
        self._pending = self._pending[len(self._pending) - keep :]
        self._out(ready, talk, calls)

    def _out(self, text: str, talk: list[str], calls: list[chat_pb2.ToolCallDelta]) -> None:
        if self._reader is not None:
            self._into(text, calls)
        elif self._calls == 0 or text.strip():
            # White space between two calls is layout.
            talk.append(text)

    def _into(self, text: str, calls: list[chat_pb2.ToolCallDelta]) -> None:
        assert self._reader is not None
        calls.extend(self._reader.feed(text))

    def _close(self, talk: list[str], calls: list[chat_pb2.ToolCallDelta], *, tag: str) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        rest = reader.end()
        if rest is not None:
            calls.extend(rest)
            return
        # It was no call: the reader passed nothing on, so the caller gets the text as it was.
        self._calls -= 1
        talk.append(reader.held if self._forced else f"{OPEN}{reader.held}{tag}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
