"""A whole request: its envelope here, its input in the files beside this one."""

import math
import re
from difflib import get_close_matches

from penstock.core.catalogue import Catalogue, Limits
from penstock.core.errors import InvalidRequest, NotFound, PenstockError, PermissionDenied
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.listing import usable_names
from penstock.router.policy import Route, resolve
from penstock.router.v1.router_pb2 import DataClass, GenerateRequest
from penstock.router.validation import sampling
from penstock.router.validation.faults import Faults, shown
from penstock.router.validation.messages import check_prompt_or_messages
from penstock.router.validation.schema import Schemas
from penstock.router.validation.tools import check_format, check_tools

MODEL_CHARACTERS_MAX = 160
"""A provider's and a model's name of 64 each, and the slash, with room."""

USER_CHARACTERS_MAX = 256
LABELS_MAX = 16
LABEL_KEY_CHARACTERS_MAX = 64
LABEL_VALUE_CHARACTERS_MAX = 512
MAX_AGE_SECONDS_MAX = 31_536_000
NAMES_SHOWN_MAX = 8
CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""The ledger's database cannot store a NUL, and line breaks have no place in labels."""


def validate(request: GenerateRequest, catalogue: Catalogue, principal: Principal) -> None:
    """Passes a request that can be planned.

    Args:
        request: As it came.
        catalogue: The one in use.
        principal: Whose request it is.

    Raises:
        InvalidRequest: all faults together, each with the proto's path of its field.
        NotFound: MODEL_NOT_FOUND.
        PermissionDenied: MODEL_NOT_ALLOWED.
    """
    limits = catalogue.limits
    size = request.ByteSize()
    if size > limits.request_bytes_max:
        raise too_large(size, limits.request_bytes_max)
    faults = Faults()
    chat = request.input
    route = _resolved(request.model, catalogue, principal)
    _check_model(faults, request.model)
    check_prompt_or_messages(faults, chat, limits)
    schemas = Schemas()
    check_tools(faults, chat, limits, schemas)
    check_format(faults, chat, schemas)
    sampling.check_sampling(faults, chat, limits)
    if isinstance(route, PenstockError):
        sampling.check_without_model(faults, chat)
    else:
        sampling.check_against_targets(faults, chat, catalogue, route.targets, request.model)
    _check_envelope(faults, request)
    if faults:
        raise faults.error()
    if isinstance(route, PenstockError):
        raise route


def too_large(size_bytes: int | None, limit_bytes: int) -> InvalidRequest:
    size = f"is {size_bytes} bytes long" if size_bytes is not None else "is too long"
    return InvalidRequest(
        f"the request {size}; at most {limit_bytes} bytes are taken "
        "(limits.request_bytes_max). Shorten the messages, or send images as https URLs.",
        reason="REQUEST_TOO_LARGE",
        metadata={"limit_bytes": str(limit_bytes)},
    )


def checked_deadline(timeout_seconds: float | None, limits: Limits, field: str) -> float:
    """The seconds a request may take: the client's, else the default.

    Raises:
        InvalidRequest: not above zero, or over `limits.deadline_seconds_max`.
    """
    if timeout_seconds is None:
        return limits.deadline_seconds_default
    most = limits.deadline_seconds_max
    if math.isfinite(timeout_seconds) and 0 < timeout_seconds <= most:
        return timeout_seconds
    faults = Faults()
    faults.add(
        field,
        f"a deadline of {timeout_seconds:g} seconds is not above 0 and at most {most:g}; "
        f"left out, it is {limits.deadline_seconds_default:g} seconds",
    )
    raise faults.error()


def _check_model(faults: Faults, model: str) -> None:
    if not model:
        faults.add("model", 'is empty; name a model, e.g. "auto"')
    elif len(model) > MODEL_CHARACTERS_MAX:
        faults.add(
            "model", f"is over {MODEL_CHARACTERS_MAX} characters long; see the list of models"
        )


def _check_envelope(faults: Faults, request: GenerateRequest) -> None:
    if request.data_class not in DataClass.values():
        faults.add("data_class", f"{request.data_class} is no data class; use ANY or LOCAL_ONLY")
    control = request.cache_control
    if control.HasField("max_age_seconds"):
        faults.within(
            "cache_control.max_age_seconds", control.max_age_seconds, 0, MAX_AGE_SECONDS_MAX,
            "0 takes no stored answer",
        )  # fmt: skip
    _check_text(faults, "user", request.user, USER_CHARACTERS_MAX)
    if len(request.metadata) > LABELS_MAX:
        faults.add(
            "metadata", f"has {len(request.metadata)} labels; at most {LABELS_MAX}, drop some"
        )
    else:
        for key in sorted(request.metadata):
            field = f"metadata[{shown(key)}]"
            if not key:
                faults.add("metadata", "has a label without a name; name or drop it")
            _check_text(faults, f"{field} (its name)", key, LABEL_KEY_CHARACTERS_MAX)
            _check_text(faults, field, request.metadata[key], LABEL_VALUE_CHARACTERS_MAX)
    if request.client_request_id and not CLIENT_REQUEST_ID.fullmatch(request.client_request_id):
        faults.add(
            "client_request_id",
            f"{shown(request.client_request_id)} is not 1 to 128 of [A-Za-z0-9._:-]; change it",
        )


def _check_text(faults: Faults, field: str, text: str, characters_max: int) -> None:
    if len(text) > characters_max:
        faults.add(field, f"is {len(text)} characters long; at most {characters_max}")
    elif CONTROL.search(text):
        faults.add(field, "holds a control character; remove it")


def _resolved(model: str, catalogue: Catalogue, principal: Principal) -> Route | PenstockError:
    try:
        return resolve(model, catalogue, principal.allowed_models)
    except NotFound:
        return _not_found(model, catalogue, principal)
    except PermissionDenied:
        return _not_allowed(model, catalogue, principal)


def _not_found(model: str, catalogue: Catalogue, principal: Principal) -> NotFound:
    usable = usable_names(catalogue, principal.allowed_models)
    ends = [name for name in usable if name.partition("/")[2] == model]
    # No name is longer; comparing takes time with each letter.
    start = model[:MODEL_CHARACTERS_MAX]
    close = (ends or get_close_matches(start, usable, n=3, cutoff=0.6))[:3]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return NotFound(
        f"model: {shown(model)} does not exist.{hint} This key may use: {_listed(usable)}.",
        reason="MODEL_NOT_FOUND",
        metadata={"model": model.encode("ascii", "replace").decode()},
    )


def _not_allowed(model: str, catalogue: Catalogue, principal: Principal) -> PermissionDenied:
    usable = usable_names(catalogue, principal.allowed_models)
    return PermissionDenied(
        f"model: this key may not use {shown(model)}. It may use: {_listed(usable)}. "
        "Ask for a key that may, or name one of these.",
        reason="MODEL_NOT_ALLOWED",
        metadata={"model": model, "key_id": principal.key_id},
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return (", ".join(names[:NAMES_SHOWN_MAX]) or "none") + more
