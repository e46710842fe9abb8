"""A few cases of each fuzzer; `make fuzz` runs them for longer."""

import pytest

from tests.fuzz import KINDS, watch

_SECONDS = 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_wrong(kind):
    found = watch.run(kind, seconds=_SECONDS)
    assert not found.findings, f"python -m tests.fuzz {kind} --seed 0 --case {found.findings[0].number}"
    assert found.cases
