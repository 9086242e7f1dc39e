"""The names that a request may write for a model, and those of them that a key may use. Pure."""

from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.errors import PermissionDenied
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.policy import resolve


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


def usable_names(catalogue: Catalogue, principal: Principal) -> list[str]:
    return [name for name in names(catalogue) if _may_use(catalogue, principal, name)]


def _may_use(catalogue: Catalogue, principal: Principal, name: str) -> bool:
    try:
        resolve(name, catalogue, principal.allowed_models)
    except PermissionDenied:
        return False
    return True
