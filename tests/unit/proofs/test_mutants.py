"""The mutants follow the code: each changes one place of it as it is now."""

import pytest

from proofs import ROOT
from proofs.mutant import Mutant
from proofs.mutant_list import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place(mutant: Mutant) -> None:
    text = (ROOT / "services" / "penstock" / mutant.file).read_text()
    assert 1 == text.count(mutant.old)
    assert mutant.old != mutant.new
