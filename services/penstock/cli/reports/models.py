"""A provider's models as its exports name them, and as our configuration does."""

import re

from penstock.cli.reports.together import Price
from penstock.core.catalogue import Catalogue

_DATE_SUFFIX = re.compile(r"-\d{4}-\d{2}-\d{2}$", re.ASCII)


def _base(model: str) -> str:
    return _DATE_SUFFIX.sub("", model)


def name_of(catalogue: Catalogue, provider: str, billed: str) -> str:
    """What the configuration calls the model that is billed so; what it does not know, as it is.

    By its name or its `upstream_name`: as it is billed, else without the date.
    """
    found = catalogue.providers.get(provider)
    if found is None:
        return billed
    upstream = {name: model.upstream_name or name for name, model in found.models.items()}
    for same in (
        lambda name: name == billed,
        lambda name: upstream[name] == billed,
        lambda name: upstream[name] == _base(billed),
        lambda name: _base(upstream[name]) == _base(billed),
    ):
        for name in upstream:
            if same(name):
                return name
    return billed


def prices(catalogue: Catalogue, provider: str) -> Price:
    """What a day's tokens of a model cost by the configuration."""

    def price(model: str, prompt: int, cached: int, completion: int) -> int | None:
        known = catalogue.price_of(f"{provider}/{name_of(catalogue, provider, model)}")
        if known is None:
            return None
        return known.cost_nano_usd(
            prompt_tokens=prompt, completion_tokens=completion, cached_prompt_tokens=cached
        )

    return price
