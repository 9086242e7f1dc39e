"""The names that a request may write for a model, and those of them that a key may use. Pure."""

from collections.abc import Iterator, Sequence

from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.errors import PermissionDenied
from penstock.core.money import Price
from penstock.router.backends.base import PoolView, ProviderView, Views
from penstock.router.policy import resolve
from penstock.router.v1.router_pb2 import Model


def names(catalogue: Catalogue) -> list[str]:
    """Every name of the catalogue: aliases first, then our own models, then the paid ones."""
    return [
        *catalogue.aliases,
        *(f"{LOCAL_PROVIDER}/{name}" for name in catalogue.models),
        *(
            f"{provider}/{name}"
            for provider, spec in catalogue.providers.items()
            for name in spec.models
        ),
    ]


def usable_names(catalogue: Catalogue, allowed: Sequence[str]) -> list[str]:
    return [name for name in names(catalogue) if _may_use(name, catalogue, allowed)]


def usable_models(catalogue: Catalogue, allowed: Sequence[str], views: Views) -> list[Model]:
    """In the order of `names`; without the paid ones whose provider is off."""
    return [m for m in _all(catalogue, views) if _may_use(m.id, catalogue, allowed)]


def _may_use(name: str, catalogue: Catalogue, allowed: Sequence[str]) -> bool:
    try:
        resolve(name, catalogue, allowed)
    except PermissionDenied:
        return False
    return True


def _all(catalogue: Catalogue, views: Views) -> Iterator[Model]:
    for name, alias in catalogue.aliases.items():
        yield Model(id=name, kind=Model.KIND_ALIAS, targets=alias.targets)
    for name, local in catalogue.models.items():
        yield _priced(
            Model(
                id=f"{LOCAL_PROVIDER}/{name}",
                kind=Model.KIND_LOCAL,
                context_tokens=local.context_tokens,
                max_output_tokens=local.max_output_tokens,
                ready_replicas=views.pools.get(name, PoolView()).ready_replicas,
                supports_tools=local.supports_tools,
            ),
            local.tariff.price,
        )
    for provider, spec in catalogue.providers.items():
        if not views.providers.get(provider, ProviderView(label=provider)).enabled:
            continue
        for name, paid in spec.models.items():
            yield _priced(
                Model(
                    id=f"{provider}/{name}",
                    kind=Model.KIND_PAID,
                    context_tokens=paid.context_tokens,
                    max_output_tokens=paid.max_output_tokens,
                ),
                paid.price.price,
            )


def _priced(model: Model, price: Price) -> Model:
    model.input_nano_usd_per_mtok = price.input_nano_usd_per_mtok
    model.output_nano_usd_per_mtok = price.output_nano_usd_per_mtok
    return model
