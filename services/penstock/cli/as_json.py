"""Messages as JSON documents: names as in the protos, int64 as numbers."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def as_dict(message: Message) -> Any:
    """What JSON has; the protobuf library tells int64 as text, which is given back as int here."""
    told = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    descriptor: Any = message.DESCRIPTOR
    return _exact(told, descriptor)


def _exact(value: Any, descriptor: Descriptor) -> Any:
    if not isinstance(value, dict) or descriptor.file.package == "google.protobuf":
        return value
    return {name: _field(one, descriptor.fields_by_name[name]) for name, one in value.items()}


def _field(value: Any, field: FieldDescriptor) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of = inner.fields_by_name["value"]
        return {key: _field(one, of) for key, one in value.items()}
    if isinstance(value, list):
        return [_one(one, field) for one in value]
    return _one(value, field)


def _one(value: Any, field: FieldDescriptor) -> Any:
    if field.cpp_type in _INT64:
        return int(value)
    return _exact(value, field.message_type) if field.message_type is not None else value
