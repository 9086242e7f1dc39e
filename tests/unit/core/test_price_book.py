"""The default catalogue's prices are those of the source that it names."""

from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage, calc_price

import penstock
from penstock.core.catalogue import PaidModel
from penstock.core.config import load
from penstock.core.money import Price, parse_usd

CATALOGUE = load(Path(next(iter(penstock.__path__))) / "penstock.yaml")
MODELS = CATALOGUE.providers["openai"].models


def first_tier(price: Any) -> int:
    """Nano-USD a million tokens."""
    return parse_usd(str(getattr(price, "base", price)))


@pytest.mark.parametrize(("name", "model"), MODELS.items(), ids=MODELS)
def test_a_price_is_that_of_its_source(name: str, model: PaidModel) -> None:
    known = calc_price(
        Usage(input_tokens=1),
        model_ref=name,
        provider_id="openai",
        genai_request_timestamp=datetime.combine(model.price.as_of, datetime.min.time()),
    ).model_price

    expected = Price(
        input_nano_usd_per_mtok=first_tier(known.input_mtok),
        cached_input_nano_usd_per_mtok=first_tier(known.cache_read_mtok),
        output_nano_usd_per_mtok=first_tier(known.output_mtok),
    )
    assert expected == model.price.price
    assert f"genai-prices {version('genai-prices')}" == model.price.source
