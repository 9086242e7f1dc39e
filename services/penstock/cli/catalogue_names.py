"""Names that an operator types beside those of the catalogue: what matches nothing is warned of.

It is never refused: the model may come later, or the ledger serves another configuration as well.
"""

import os
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from rich.markup import escape

from penstock.cli import processes
from penstock.cli.app import err
from penstock.cli.state import State
from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.config import ConfigError, load

STAND_IN_SUFFIX = "-stand-in"
CACHE_PROVIDER = "cache"
"""Of hits that are counted, as `local` is of our own replicas: in entries, not in the catalogue."""

HERE = Path("penstock.yaml")


def warn_of_scope(
    state: State, providers: Sequence[str] | None, models: Sequence[str] | None
) -> None:
    """Of what is set for providers and models that there are none of."""
    found = _catalogue(state)
    if found is None or not (providers or models):
        return
    path, catalogue = found
    pairs = _pairs(catalogue)
    known = {"provider": {p for p, _ in pairs}, "model": {m for _, m in pairs}}
    known["model"] |= {f"{p}/{m}" for p, m in pairs}
    strange = [
        (kind, text)
        for kind, texts in (("provider", providers or ()), ("model", models or ()))
        for text in texts
        if not any(_fits(text, name) for name in known[kind])
    ]
    for kind, text in strange:
        _warn(
            f"scope {kind} {text!r} matches no {kind} of {path.name}: it will apply to nothing"
            f" until one is there{_near(text, known[kind])}"
        )
    if strange or not (providers and models):
        return
    if not any(_applies(p, m, providers, models) for p, m in pairs):
        _warn(
            f"no provider of this scope has a model of it in {path.name}: it will apply to nothing"
            " until one has"
        )


def warn_of_providers(state: State, providers: Sequence[str] | None) -> None:
    """Of a pool's: names, not patterns."""
    found = _catalogue(state)
    if found is None:
        return
    path, catalogue = found
    known = {provider for provider, _ in _pairs(catalogue)} | set(catalogue.providers)
    for name in providers or ():
        if name in {LOCAL_PROVIDER, CACHE_PROVIDER}:
            _warn(f"{name!r} is no paid provider: a pool does not apply to it")
        elif name not in known and name.removesuffix(STAND_IN_SUFFIX) not in known:
            _warn(
                f"provider {name!r} is not in {path.name}: the pool will apply to nothing of it"
                f" until it is there{_near(name, known)}"
            )


def warn_of_allowed_models(state: State, models: Sequence[str]) -> None:
    """Of a key's: aliases, models and pins, as patterns."""
    found = _catalogue(state)
    if found is None:
        return
    path, catalogue = found
    known = {*catalogue.aliases, *catalogue.targets}
    for name in models:
        if not any(fnmatchcase(one, name) for one in known):
            _warn(f"{name!r} is no model or alias of {path.name}{_near(name, known)}")


def _catalogue(state: State) -> tuple[Path, Catalogue] | None:
    """That of the Penstock which runs here, or the one of this folder; None: neither is readable.

    Never the package's own example: what serves may be on another machine.
    """
    running = processes.load(state)
    if running is not None:
        path = Path(running.options["config"])
    else:
        path = Path(os.environ.get("PENSTOCK_CONFIG") or HERE)
    try:
        return path, load(path)
    except (ConfigError, OSError):
        return None


def _pairs(catalogue: Catalogue) -> set[tuple[str, str]]:
    """Provider and model of each attempt that there can be."""
    own = {(LOCAL_PROVIDER, name) for name in catalogue.models}
    paid = {(name, model) for name, p in catalogue.providers.items() for model in p.models}
    played = {(f"{name}{STAND_IN_SUFFIX}", model) for name, model in paid}
    hits = {(CACHE_PROVIDER, model) for _, model in own | paid}
    return own | paid | played | hits


def _applies(provider: str, model: str, providers: Sequence[str], models: Sequence[str]) -> bool:
    """As the ledger has it."""
    return any(_fits(text, provider) for text in providers) and any(
        _fits(text, model) or _fits(text, f"{provider}/{model}") for text in models
    )


def _fits(pattern: str, name: str) -> bool:
    """`*` is any characters, and everything else is itself."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def _near(text: str, known: Collection[str]) -> str:
    near = get_close_matches(text, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _warn(text: str) -> None:
    err.print(f"  warning: {escape(text)}", style="yellow")
