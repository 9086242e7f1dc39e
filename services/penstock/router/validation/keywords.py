"""The shape of JSON schemas, draft 2020-12: what each keyword takes, as the metaschema has it.

A validator in Python needs up to half a millisecond for each subschema to check that, on the loop
that serves everybody; this one needs a microsecond.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

T = TypeVar("T")

WHERE_CHARACTERS_MAX = 200
"""Of the path to a fault: its names are the caller's."""


def _kind(value: Any) -> str:
    return "<bool>" if isinstance(value, bool) else "<object>"


def _list_or_schema(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<schema>"


def _unique(found: list[str]) -> list[str]:
    if len(set(found)) < len(found):
        raise ValueError("should not hold the same word twice")
    return found


Schema = Annotated[
    Annotated[bool, Tag("<bool>")] | Annotated["Keywords", Tag("<object>")], Discriminator(_kind)
]
Schemas = Annotated[list[Schema], Field(min_length=1, fail_fast=True)]
ByName = Annotated[dict[str, T], Field(fail_fast=True)]
Words = Annotated[list[str], Field(fail_fast=True), AfterValidator(_unique)]
WordsOrSchema = Annotated[
    Annotated[Words, Tag("<list>")] | Annotated[Schema, Tag("<schema>")],
    Discriminator(_list_or_schema),
]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[Number, Field(ge=0, multiple_of=1)]
Anchor = Annotated[str, Field(pattern=r"^[A-Za-z_][-A-Za-z0-9._]*$")]
Type = Literal["array", "boolean", "integer", "null", "number", "object", "string"]
Types = Annotated[list[Type], Field(min_length=1, fail_fast=True), AfterValidator(_unique)]
TypeOrTypes = Annotated[
    Annotated[Types, Tag("<list>")] | Annotated[Type, Tag("<schema>")],
    Discriminator(_list_or_schema),
]

Keywords = TypedDict(
    "Keywords",
    {
        "$schema": str,
        "$id": Annotated[str, Field(pattern=r"^[^#]*#?$")],
        "$ref": str,
        "$anchor": Anchor,
        "$dynamicRef": str,
        "$dynamicAnchor": Anchor,
        "$vocabulary": ByName[bool],
        "$comment": str,
        "$defs": ByName[Schema],
        "allOf": Schemas,
        "anyOf": Schemas,
        "oneOf": Schemas,
        "prefixItems": Schemas,
        "not": Schema,
        "if": Schema,
        "then": Schema,
        "else": Schema,
        "items": Schema,
        "contains": Schema,
        "propertyNames": Schema,
        "additionalProperties": Schema,
        "unevaluatedItems": Schema,
        "unevaluatedProperties": Schema,
        "contentSchema": Schema,
        "properties": ByName[Schema],
        "patternProperties": ByName[Schema],
        "dependentSchemas": ByName[Schema],
        "dependentRequired": ByName[Words],
        "type": TypeOrTypes,
        "enum": list[Any],
        "required": Words,
        "minLength": Count,
        "maxLength": Count,
        "minItems": Count,
        "maxItems": Count,
        "minContains": Count,
        "maxContains": Count,
        "minProperties": Count,
        "maxProperties": Count,
        "minimum": Number,
        "maximum": Number,
        "exclusiveMinimum": Number,
        "exclusiveMaximum": Number,
        "multipleOf": Annotated[Number, Field(gt=0)],
        "uniqueItems": bool,
        "pattern": str,
        "format": str,
        "contentEncoding": str,
        "contentMediaType": str,
        "title": str,
        "description": str,
        "deprecated": bool,
        "readOnly": bool,
        "writeOnly": bool,
        "examples": list[Any],
        # Of earlier drafts; still read.
        "definitions": ByName[Schema],
        "dependencies": ByName[WordsOrSchema],
        "$recursiveAnchor": Anchor,
        "$recursiveRef": str,
    },
    total=False,
)
Keywords.__pydantic_config__ = ConfigDict(strict=True)  # type: ignore[attr-defined]  # pydantic's own

_check = TypeAdapter(Keywords).validate_python


def shape_fault(schema: dict[str, Any]) -> str | None:
    """The first keyword with a value that it does not take; None: there is none."""
    try:
        _check(schema)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        where = "/".join(str(p) for p in fault["loc"] if not str(p).startswith("<"))
        text = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
        text = text.replace("dictionary", "object")
        return f"{text} at {where[:WHERE_CHARACTERS_MAX]}"
    return None
