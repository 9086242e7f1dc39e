"""Tools, the choice among them, and the format of the answer."""

from penstock.core.catalogue import Limits
from penstock.router.validation.faults import Faults, shown
from penstock.router.validation.messages import FUNCTION_NAME
from penstock.router.validation.schema import Schemas
from penstock.type.v1.chat_pb2 import ChatInput, ResponseFormat, Tool, ToolChoice

TOOL_DESCRIPTION_CHARACTERS_MAX = 16_384
"""It is prompt text; longer ones are documents and belong into a message."""

FORMAT_DESCRIPTION_CHARACTERS_MAX = 1_024


def check_tools(faults: Faults, chat: ChatInput, limits: Limits, schemas: Schemas) -> None:
    if len(chat.tools) > limits.tools_max:
        faults.add(
            "input.tools", f"has {len(chat.tools)} tools; at most {limits.tools_max}, drop some"
        )
        return
    seen: set[str] = set()
    for index, tool in enumerate(chat.tools):
        _check_tool(faults, f"input.tools[{index}]", tool, seen, schemas)
        seen.add(tool.name)
    if chat.HasField("tool_choice"):
        _check_choice(faults, chat.tool_choice, seen)
    if chat.HasField("parallel_tool_calls") and not chat.tools:
        faults.add("input.parallel_tool_calls", "is set without tools; leave it out or send tools")


def _check_tool(faults: Faults, path: str, tool: Tool, seen: set[str], schemas: Schemas) -> None:
    if not FUNCTION_NAME.fullmatch(tool.name):
        faults.add(
            f"{path}.name", f"{shown(tool.name)} is not 1 to 64 of [A-Za-z0-9_-]; rename the tool"
        )
    elif tool.name in seen:
        faults.add(f"{path}.name", f"{shown(tool.name)} is there twice; names must differ")
    if len(tool.description) > TOOL_DESCRIPTION_CHARACTERS_MAX:
        faults.add(
            f"{path}.description",
            f"is over {TOOL_DESCRIPTION_CHARACTERS_MAX} characters long; shorten it",
        )
    fault = schemas.fault_of(tool.parameters_json) if tool.parameters_json else None
    if fault:
        faults.add(f"{path}.parameters_json", fault)


def _check_choice(faults: Faults, choice: ToolChoice, names: set[str]) -> None:
    if not names:
        faults.add("input.tool_choice", "is set without tools; leave it out or send tools")
    elif choice.WhichOneof("choice") == "function_name":
        if choice.function_name not in names:
            faults.add(
                "input.tool_choice.function_name",
                f"{shown(choice.function_name)} is none of the tools: "
                f"{', '.join(sorted(names)[:8])}",
            )
    elif choice.mode not in (
        ToolChoice.MODE_NONE,
        ToolChoice.MODE_AUTO,
        ToolChoice.MODE_REQUIRED,
    ):
        faults.add(
            "input.tool_choice.mode",
            f"{choice.mode} is no mode; use none, auto or required, or name a function",
        )


def check_format(faults: Faults, chat: ChatInput, schemas: Schemas) -> None:
    if not chat.HasField("response_format"):
        return
    given = chat.response_format
    kinds = (ResponseFormat.KIND_TEXT, ResponseFormat.KIND_JSON_OBJECT)
    if given.kind in kinds:
        if given.schema_json or given.schema_name:
            faults.add(
                "input.response_format.schema_json",
                "belongs to the kind json_schema; set that kind",
            )
        return
    if given.kind != ResponseFormat.KIND_JSON_SCHEMA:
        faults.add(
            "input.response_format.kind",
            f"{given.kind} is no kind; use text, json_object or json_schema",
        )
        return
    if not FUNCTION_NAME.fullmatch(given.schema_name):
        faults.add(
            "input.response_format.schema_name",
            f"{shown(given.schema_name)} is not 1 to 64 of [A-Za-z0-9_-]; name the schema",
        )
    if len(given.schema_description) > FORMAT_DESCRIPTION_CHARACTERS_MAX:
        faults.add(
            "input.response_format.schema_description",
            f"is over {FORMAT_DESCRIPTION_CHARACTERS_MAX} characters long; shorten it",
        )
    if not given.schema_json:
        faults.add("input.response_format.schema_json", "is empty; send a JSON schema")
    elif fault := schemas.fault_of(given.schema_json):
        faults.add("input.response_format.schema_json", fault)
