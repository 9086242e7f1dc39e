"""`ChatInput` to the prompt's token ids, by the model's own tokenizer and chat template."""

import json
from collections.abc import Mapping
from typing import Any

from penstock.local.engines.base import input_field
from penstock.local.engines.chat import (
    Json,
    json_object,
    offered_tools,
    parameters_field,
    refused,
    role_of,
    text_of,
)
from penstock.local.engines.tool_calls import CLOSE, OPEN
from penstock.type.v1 import chat_pb2

TOOLS_TEXT = """\
You may call these functions, given as JSON, one a line:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between tags, and nothing else:
{open}
{{"name": "<name>", "arguments": {{<arguments>}}}}
{close}"""
"""Shown to models whose chat template has no place for tools."""


def call_schema(tools: Mapping[int, chat_pb2.Tool]) -> Json:
    """The JSON schema of one call of one of the tools, which come by their place."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": json_object(tool.parameters_json, parameters_field(index)),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, tool in tools.items()
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


class PromptMaker:
    """Wraps a Hugging Face tokenizer. Not safe for threads at the same time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._knows_tools = "tools" in (tokenizer.chat_template or "")

    def token_ids(self, chat: chat_pb2.ChatInput) -> list[int]:
        """The prompt's tokens, special tokens included.

        Raises:
            InvalidRequest: what this model cannot take, or what its template refuses.
        """
        if chat.HasField("prompt"):
            return list(self._tokenizer.encode(chat.prompt))
        messages = [self._message(m, i) for i, m in enumerate(chat.messages)]
        tools = [_tool_spec(tool, i) for i, tool in offered_tools(chat).items()]
        if tools and not self._knows_tools:
            messages = _with_tools_text(messages, tools)
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools if tools and self._knows_tools else None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:
            # A template is a program of the model's author: it may raise anything.
            raise refused(
                input_field(chat), f"the model's chat template refuses them: {error}"
            ) from error
        # The template has written the special tokens itself.
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _message(self, message: chat_pb2.Message, index: int) -> Json:
        out: Json = {"role": role_of(message, index), "content": text_of(message, index)}
        if message.name:
            out["name"] = message.name
        calls = [
            {"name": call.name, "arguments": _arguments(call.arguments_json)}
            for call in message.tool_calls
        ]
        if self._knows_tools:
            if message.tool_call_id:
                out["tool_call_id"] = message.tool_call_id
            if calls:
                out["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": function}
                    for call, function in zip(message.tool_calls, calls, strict=True)
                ]
        elif calls:
            written = [f"{OPEN}\n{_dump(call)}\n{CLOSE}" for call in calls]
            out["content"] = "\n".join([*filter(None, [out["content"]]), *written])
        elif message.role == chat_pb2.ROLE_TOOL:
            out |= {"role": "user"}
            out["content"] = f"<tool_response>\n{out['content']}\n</tool_response>"
        return out


def _tool_spec(tool: chat_pb2.Tool, index: int) -> Json:
    parameters = json_object(tool.parameters_json, parameters_field(index))
    function: Json = {"name": tool.name, "parameters": parameters}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _with_tools_text(messages: list[Json], tools: list[Json]) -> list[Json]:
    lines = "\n".join(_dump(tool["function"]) for tool in tools)
    text = TOOLS_TEXT.format(tools=lines, open=OPEN, close=CLOSE)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _arguments(text: str) -> Any:
    """Templates print arguments as JSON by themselves; what is none stays text."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
