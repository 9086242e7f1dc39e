"""Sampling parameters: ranges that every engine and provider takes."""

from collections.abc import Sequence

from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue, Limits
from penstock.router.validation.faults import Faults, shown
from penstock.type.v1.chat_pb2 import ChatInput

STOP_MAX = 4
STOP_CHARACTERS_MAX = 512
LOGIT_BIAS_MAX = 1_024
TOP_LOGPROBS_MAX = 20
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""OpenAI's; which of them one model takes, its provider says."""


def check_sampling(faults: Faults, chat: ChatInput, limits: Limits) -> None:
    if chat.HasField("n"):
        faults.within("input.n", chat.n, 1, limits.n_max, "ask for fewer choices a request")
    if chat.HasField("temperature"):
        faults.within("input.temperature", chat.temperature, 0, 2, "1 is the usual value")
    if chat.HasField("top_p"):
        faults.within("input.top_p", chat.top_p, 0, 1, "1 is the usual value")
        if chat.top_p == 0:
            faults.add("input.top_p", "0 leaves no token to choose; use temperature 0 instead")
    for name in ("presence_penalty", "frequency_penalty"):
        if chat.HasField(name):
            faults.within(f"input.{name}", getattr(chat, name), -2, 2, "0 is the usual value")
    _check_stop(faults, chat)
    _check_logprobs(faults, chat)
    _check_logit_bias(faults, chat)


def _check_stop(faults: Faults, chat: ChatInput) -> None:
    if len(chat.stop) > STOP_MAX:
        faults.add("input.stop", f"has {len(chat.stop)} sequences; at most {STOP_MAX}, drop some")
        return
    for index, sequence in enumerate(chat.stop):
        if not 1 <= len(sequence) <= STOP_CHARACTERS_MAX:
            faults.add(
                f"input.stop[{index}]",
                f"is not 1 to {STOP_CHARACTERS_MAX} characters long; change or drop it",
            )


def _check_logprobs(faults: Faults, chat: ChatInput) -> None:
    if not chat.HasField("top_logprobs"):
        return
    faults.within("input.top_logprobs", chat.top_logprobs, 0, TOP_LOGPROBS_MAX, "ask for fewer")
    if not chat.logprobs:
        faults.add("input.top_logprobs", "needs logprobs; set logprobs to true")


def _check_logit_bias(faults: Faults, chat: ChatInput) -> None:
    if len(chat.logit_bias) > LOGIT_BIAS_MAX:
        faults.add(
            "input.logit_bias",
            f"has {len(chat.logit_bias)} tokens; at most {LOGIT_BIAS_MAX}, drop some",
        )
        return
    for token in sorted(chat.logit_bias):
        if token < 0:
            faults.add("input.logit_bias", f"{token} is no token id; ids are 0 or more")
        faults.within(
            f"input.logit_bias[{token}]", chat.logit_bias[token], -100, 100, "0 changes nothing"
        )


def check_against_targets(
    faults: Faults, chat: ChatInput, catalogue: Catalogue, targets: Sequence[str], model: str
) -> None:
    """What depends on the model: of an alias, at least one target must be able to."""
    if chat.HasField("max_tokens"):
        most = max(catalogue.max_output_tokens_of(target) or 0 for target in targets)
        if not 1 <= chat.max_tokens <= most:
            faults.add(
                "input.max_tokens",
                f"{chat.max_tokens} is not from 1 to {most}, the bound of {shown(model)}; "
                "left out, it is the bound of the model that answers",
            )
    if chat.HasField("reasoning_effort"):
        _check_effort(faults, chat, catalogue, targets, model)


def check_without_model(faults: Faults, chat: ChatInput) -> None:
    """What of the same can be told of a request whose model is unknown."""
    if chat.HasField("max_tokens") and chat.max_tokens < 1:
        faults.add("input.max_tokens", f"{chat.max_tokens} is below 1; ask for a token or more")
    if chat.HasField("reasoning_effort") and chat.reasoning_effort not in REASONING_EFFORTS:
        faults.add("input.reasoning_effort", _no_effort(chat.reasoning_effort))


def _check_effort(
    faults: Faults, chat: ChatInput, catalogue: Catalogue, targets: Sequence[str], model: str
) -> None:
    if chat.reasoning_effort not in REASONING_EFFORTS:
        faults.add("input.reasoning_effort", _no_effort(chat.reasoning_effort))
    elif not any(_reasons(catalogue, target) for target in targets):
        faults.add("input.reasoning_effort", f"{shown(model)} is no reasoning model; leave it out")


def _no_effort(value: str) -> str:
    return f"{shown(value)} is none of {', '.join(REASONING_EFFORTS)}"


def _reasons(catalogue: Catalogue, target: str) -> bool:
    provider, _, name = target.partition("/")
    paid = None if provider == LOCAL_PROVIDER else catalogue.paid(provider, name)
    return paid is not None and paid.reasoning
