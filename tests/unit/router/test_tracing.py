"""What a request's span says of how its answer ended."""

import pytest

from penstock.core import semconv
from penstock.core.errors import BudgetExceeded
from penstock.router import tracing
from penstock.router.events import Done
from support.flow_house import House, request
from support.ports import local_words


@pytest.mark.parametrize("cut", [True, False])
async def test_an_answer_that_ends_at_a_budget_bears_it_on_its_span(*, cut: bool):
    house = House(local=local_words(60), slice_tokens=20)
    if cut:
        house.ledger.extension = BudgetExceeded("spent")
    done = (await house.run(request()))[-1]
    assert isinstance(done, Done)
    told = tracing.of_receipt(done.receipt).get(semconv.FINISH_REASONS)
    assert (("budget",) if cut else None) == told
