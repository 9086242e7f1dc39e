"""What is wrong with a `penstock.yaml` that is no catalogue, in an operator's words."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from penstock.core.catalogue import Alias, Catalogue, Fault, cross_faults, targets_of

_WORDS = {
    "missing": "is missing",
    "model_type": "must be a mapping of fields",
    "dict_type": "must be a mapping of names",
    "list_type": "must be a list",
}
_NAME = "a name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit"


def field_faults(error: ValidationError) -> list[Fault]:
    """What single fields see."""
    return [(e["loc"], _words(e)) for e in error.errors(include_url=False, include_input=False)]


def _words(error: ErrorDetails) -> str:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"is no field here; known: {', '.join(_fields(path[:-1]))}"
    if error["type"] == "string_pattern_mismatch" and path[-1] == "[key]":
        return _NAME
    plain = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return _WORDS.get(error["type"], plain)


def _fields(path: tuple[str | int, ...]) -> list[str]:
    """Of the section at `path`."""
    kind: Any = Catalogue
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = get_args(kind)[-1]  # dict[Name, …]: `part` is a name
    return list(kind.model_fields)


def faults_between(value: Any) -> list[Fault]:
    """What no single field can see, of a file with faulty fields: a faulty model is there too, by
    its name; a faulty alias is left out.
    """
    providers = _mapping(value, "providers")
    by_provider = {name: _mapping(provider, "models") for name, provider in providers.items()}
    aliases = {}
    for name, alias in _mapping(value, "aliases").items():
        try:
            aliases[str(name)] = Alias.model_validate(alias)
        except ValidationError:
            continue
    return cross_faults(targets_of(_mapping(value, "models"), by_provider), providers, aliases)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}
