"""The paid providers of the catalogue: one backend each, kept up to date when the file changes."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core import errors
from penstock.core.catalogue import STAND_IN_SUFFIX, Catalogue, Provider
from penstock.core.clock import Clock
from penstock.router.backends.base import AttemptFailed, Billing, ProviderView
from penstock.router.backends.openai import Access, OpenAIBackend
from penstock.router.breaker import Breaker, trip_of


@dataclass(frozen=True, slots=True)
class StandIn:
    """What plays a provider on this machine, whatever the catalogue says of that one's access."""

    provider: str
    base_url: str
    api_key: str = field(repr=False)


class Providers:
    """Backends by the provider's name in the catalogue.

    Args:
        environ: The process's variables, read once: the catalogue names those of keys and URLs.
        stand_in: None: all are real.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        stand_in: StandIn | None = None,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._stand_in = stand_in
        self._backends: dict[str, OpenAIBackend] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self.update(catalogue)

    def update(self, catalogue: Catalogue) -> None:
        """Takes over a new catalogue. Streams of what is changed or gone run to their end."""
        self._routing = catalogue.routing
        for name in [n for n in self._backends if n not in catalogue.providers]:
            self._retire(self._backends.pop(name))
        for name, spec in catalogue.providers.items():
            known = self._backends.get(name)
            access = self._access(name, spec)
            if known is not None and known.access == access and _same_but_models(known.spec, spec):
                known.spec = spec
                continue
            if known is not None:
                self._retire(known)
            breaker = Breaker(lambda: trip_of(self._routing), self._clock)
            self._backends[name] = OpenAIBackend(
                spec=spec, access=access, breaker=breaker, clock=self._clock
            )

    def backend(self, name: str) -> OpenAIBackend:
        """The provider's backend.

        Raises:
            AttemptFailed: it was removed since the plan was made.
        """
        found = self._backends.get(name)
        if found is None:
            gone = errors.FailedPrecondition(
                f"{name} was removed from the catalogue",
                reason="PROVIDER_OFF",
                metadata={"provider": name},
            )
            raise AttemptFailed(gone, billing=Billing.NOTHING, fall_back=True)
        return found

    def views(self) -> dict[str, ProviderView]:
        return {name: backend.view for name, backend in self._backends.items()}

    async def close(self) -> None:
        for backend in self._backends.values():
            await backend.close()
        await asyncio.gather(*self._retiring)

    def _access(self, name: str, spec: Provider) -> Access:
        played = self._stand_in
        if played is not None and played.provider == name:
            return Access(name + STAND_IN_SUFFIX, played.base_url, played.api_key)
        return Access(
            label=name,
            base_url=self._variable(spec.base_url_env) or spec.base_url,
            api_key=self._variable(spec.api_key_env),
        )

    def _variable(self, name: str | None) -> str | None:
        return (name and self._environ.get(name)) or None

    def _retire(self, backend: OpenAIBackend) -> None:
        task = asyncio.ensure_future(backend.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _same_but_models(one: Provider, other: Provider) -> bool:
    return one.model_copy(update={"models": {}}) == other.model_copy(update={"models": {}})
