"""The harness finds what it is to find."""

import pytest

from tests.fuzz import watch
from tests.fuzz.harness import Improper, attempt


def _raises(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x.pth"), "of another kind: KeyError"),
        (ValueError("it is broken"), "does not name x.pth"),
        (ValueError("x.pth: 'NoneType' object is wrong"), "speaks of 'NoneType'"),
        (ValueError("x.pth" + "\n" * 3), "1 to 3 lines"),
    ],
)
def test_improper_refusals(error, said):
    with pytest.raises(Improper, match=said):
        attempt(_raises, error, names=["x.pth"])


def test_proper_refusal_and_value():
    assert attempt(_raises, ValueError("x.pth is empty"), names=["x.pth"]) is None
    assert attempt(int, "3") == 3


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [*watch.GOOD, *watch.BAD])
def test_outcomes(monkeypatch, outcome):
    monkeypatch.setenv("PLANTED", outcome)
    monkeypatch.setattr(watch, "SECONDS", 5)
    found = watch.run("planted", cases=2)
    assert found.counts == {outcome: 2}
    assert [each.outcome for each in found.findings] == [outcome] * 2 * (outcome in watch.BAD)
