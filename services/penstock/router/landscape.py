"""Everything that can answer now, and the way to it: our own pools and the paid providers."""

from penstock.core.catalogue import LOCAL_PROVIDER
from penstock.router.backends.base import Backend, Views
from penstock.router.backends.local import LocalBackend
from penstock.router.backends.providers import Providers
from penstock.router.pools import Pools


class LiveLandscape:
    """See `ports.Landscape`; `backend` is the flow's way to what an attempt names."""

    def __init__(self, *, pools: Pools, local: LocalBackend, providers: Providers) -> None:
        self._pools = pools
        self._local = local
        self._providers = providers

    def views(self) -> Views:
        return Views(pools=self._pools.views(), providers=self._providers.views())

    def backend(self, provider: str) -> Backend:
        """The backend of "local", or of a provider by its name in the catalogue.

        Raises:
            AttemptFailed: the provider was removed since the plan was made.
        """
        if provider == LOCAL_PROVIDER:
            return self._local
        return self._providers.backend(provider)
