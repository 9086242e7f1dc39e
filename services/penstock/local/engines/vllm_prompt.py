"""`ChatInput` to the prompt's token ids, by the model's own tokenizer and chat template."""

import json
from typing import Any

from penstock.local.engines.base import input_field
from penstock.local.engines.chat import Json, json_object, refused, role_of, text_of
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


def offered_tools(chat: chat_pb2.ChatInput) -> list[chat_pb2.Tool]:
    """The tools that the model may call in this request.

    Raises:
        InvalidRequest: the function that must be called is not among the tools.
    """
    if chat.tool_choice.mode == chat_pb2.ToolChoice.MODE_NONE:
        return []
    name = chat.tool_choice.function_name
    found = [tool for tool in chat.tools if name in ("", tool.name)]
    if name and not found:
        raise refused("input.tool_choice.function_name", f"{name!r} is not among input.tools")
    return found


def is_call_forced(chat: chat_pb2.ChatInput) -> bool:
    choice = chat.tool_choice
    return bool(choice.function_name) or choice.mode == chat_pb2.ToolChoice.MODE_REQUIRED


def call_schema(tools: list[chat_pb2.Tool]) -> Json:
    """The JSON schema of one call of one of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": json_object(tool.parameters_json, "input.tools.parameters_json"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
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
        tools = [_tool_spec(tool, i) for i, tool in enumerate(offered_tools(chat))]
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
    parameters = json_object(tool.parameters_json, f"input.tools[{index}].parameters_json")
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
