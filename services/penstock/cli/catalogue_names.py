"""Names that an operator types beside those of the catalogue: what matches nothing is warned of.

It is never refused: the model may come later, or the ledger serves another configuration as well.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from rich.markup import escape

from penstock.cli import processes
from penstock.cli.app import err
from penstock.cli.options import STAND_IN, STOOD_IN_PROVIDER
from penstock.cli.state import State
from penstock.core.catalogue import LOCAL_PROVIDER, STAND_IN_SUFFIX, Catalogue
from penstock.core.config import ConfigError, load

PLAYED = STOOD_IN_PROVIDER + STAND_IN_SUFFIX
"""As the router names attempts that a stand-in answers."""

CACHE_PROVIDER = "cache"
"""Of hits that are counted, as `local` is of our own replicas: in entries, not in the catalogue."""

HERE = Path("penstock.yaml")


@dataclass(frozen=True, slots=True)
class _Known:
    """A catalogue. `is_played`: by a stand-in, whose name attempts bear in the provider's stead."""

    path: Path
    catalogue: Catalogue
    is_played: bool

    @property
    def providers(self) -> set[str]:
        """As attempts name them; where no stand-in plays, or nothing runs, one may come to play."""
        real = set(self.catalogue.providers)
        if STOOD_IN_PROVIDER in real:
            real.add(PLAYED)
        return real - {STOOD_IN_PROVIDER} if self.is_played else real

    def pairs(self) -> set[tuple[str, str]]:
        """Provider and model of each attempt that there can be."""
        catalogue = self.catalogue
        own = {(LOCAL_PROVIDER, name) for name in catalogue.models}
        paid = {
            (name, model)
            for name in self.providers
            for model in catalogue.providers[STOOD_IN_PROVIDER if name == PLAYED else name].models
        }
        return own | paid | {(CACHE_PROVIDER, model) for _, model in own | paid}

    def warn(self, what: str, text: str, why: str, names: Collection[str]) -> None:
        """Of a text that fits none of these names; `why` is what there is to say of it."""
        provider, slash, rest = text.partition("/")
        played = f"{PLAYED}{slash}{rest}"
        if self.is_played and _fits(provider, STOOD_IN_PROVIDER) and _any_fits(played, names):
            _warn(
                f"{what} {text!r} applies to nothing with PAID={STAND_IN}, as it runs here: its"
                f" attempts are named {played!r}"
            )
        else:
            _warn(f"{what} {text!r} {why}{_near(text, names)}")


def warn_of_scope(
    state: State, providers: Sequence[str] | None, models: Sequence[str] | None
) -> None:
    """Of what is set for providers and models that there are none of."""
    found = _known(state)
    if found is None or not (providers or models):
        return
    pairs, file = found.pairs(), found.path.name
    known = {"provider": {p for p, _ in pairs}, "model": {m for _, m in pairs}}
    known["model"] |= {f"{p}/{m}" for p, m in pairs}
    strange = [
        (kind, text)
        for kind, texts in (("provider", providers or ()), ("model", models or ()))
        for text in texts
        if not _any_fits(text, known[kind])
    ]
    for kind, text in strange:
        why = f"matches no {kind} of {file}: it will apply to nothing until one is there"
        found.warn(f"scope {kind}", text, why, known[kind])
    if strange or not (providers and models):
        return
    if not any(_applies(p, m, providers, models) for p, m in pairs):
        _warn(
            f"no provider of this scope has a model of it in {file}: it will apply to nothing until"
            " one has"
        )


def warn_of_providers(state: State, providers: Sequence[str] | None) -> None:
    """Of a pool's: names, not patterns."""
    found = _known(state)
    if found is None:
        return
    known = found.providers
    why = f"is not in {found.path.name}: the pool will apply to nothing of it until it is there"
    for name in providers or ():
        if name in {LOCAL_PROVIDER, CACHE_PROVIDER}:
            _warn(f"{name!r} is no paid provider: a pool does not apply to it")
        elif name not in known:
            found.warn("provider", name, why, known)


def warn_of_allowed_models(state: State, models: Sequence[str]) -> None:
    """Of a key's: aliases, models and pins, as patterns."""
    found = _known(state)
    if found is None:
        return
    known = {*found.catalogue.aliases, *found.catalogue.targets}
    for name in models:
        if not any(fnmatchcase(one, name) for one in known):
            _warn(f"{name!r} is no model or alias of {found.path.name}{_near(name, known)}")


def _known(state: State) -> _Known | None:
    """That of the Penstock which runs here, or the one of this folder; None: neither is readable.

    Never the package's own example: what serves may be on another machine.
    """
    running = processes.load(state)
    if running is not None:
        path = Path(running.options["config"])
    else:
        path = Path(os.environ.get("PENSTOCK_CONFIG") or HERE)
    try:
        catalogue = load(path)
    except (ConfigError, OSError):
        return None
    is_played = running is not None and running.options.get("paid") == STAND_IN
    return _Known(path, catalogue, is_played)


def _applies(provider: str, model: str, providers: Sequence[str], models: Sequence[str]) -> bool:
    """As the ledger has it."""
    return any(_fits(text, provider) for text in providers) and any(
        _fits(text, model) or _fits(text, f"{provider}/{model}") for text in models
    )


def _fits(pattern: str, name: str) -> bool:
    """`*` is any characters, and everything else is itself."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def _any_fits(pattern: str, names: Collection[str]) -> bool:
    return any(_fits(pattern, name) for name in names)


def _near(text: str, known: Collection[str]) -> str:
    near = get_close_matches(text, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _warn(text: str) -> None:
    err.print(f"  warning: {escape(text)}", style="yellow")
