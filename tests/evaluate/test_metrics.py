"""Errors, their intervals, class by class, and how far confidence can be trusted."""

import math

import pytest
import torch

from vggfast.evaluate import errors, interval, per_class, reliability


def test_errors_counts():
    scores = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [1, 2, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    labels = torch.tensor([0, 0, 0, 4])
    assert errors(scores, labels) == {"top1_error": 75.0, "top5_error": 25.0}
    assert errors(scores, labels, ks=(2, 6)) == {"top2_error": 50.0, "top6_error": 0.0}


def test_ties_and_nan_go_against_the_network():
    assert errors(torch.zeros(1, 3), torch.tensor([0]))["top1_error"] == 100
    assert errors(torch.full((1, 3), float("nan")), torch.tensor([1]), ks=(3,)) == {"top3_error": 100.0}


def test_no_images():
    with pytest.raises(ValueError, match="scores must have at least one image, got none"):
        errors(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize(
    ("wrong", "n", "low", "high"),
    # statsmodels.stats.proportion.proportion_confint(wrong, n, 0.05, "wilson")
    [(10, 100, 5.5229, 17.4366), (0, 50, 0.0, 7.1348), (50, 50, 92.8652, 100.0), (1, 2, 9.4531, 90.5469)],
)
def test_wilsons_interval(wrong, n, low, high):
    assert interval(100 * wrong / n, n) == pytest.approx((low, high), abs=1e-3)


def test_an_interval_holds_the_error_and_narrows():
    low, high = interval(24.8, 50_000)
    assert low < 24.8 < high
    assert high - low < interval(24.8, 500)[1] - interval(24.8, 500)[0]
    assert high - low < interval(24.8, 50_000, level=0.99)[1] - interval(24.8, 50_000, level=0.99)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((101, 5), "errors must be 0 to 100, got 101"),
        ((10, 0), "n must be at least 1, got 0"),
        ((10, 5, 1.0), "level must be between 0 and 1, got 1.0"),
    ],
)
def test_intervals_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        interval(*arguments)


def test_each_class_has_a_row():
    posteriors = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3]])
    rows = per_class(posteriors, torch.tensor([0, 0, 0, 1]), ["cat", "dog", "owl"])
    assert rows[0][:2] == ("cat", 3)
    assert rows[0].top1_error == pytest.approx(200 / 3)
    assert rows[0].top5_error == 0
    assert rows[0].confidence == pytest.approx(1 / 3)
    assert rows[0][-2:] == ("dog", 2)
    assert rows[1] == ("dog", 1, 0.0, 0.0, pytest.approx(0.4), "", 0)
    assert rows[2][:2] == ("owl", 0)
    assert math.isnan(rows[2].top1_error)
    with pytest.warns(DeprecationWarning, match="top1 of ClassRow is now top1_error"):
        assert rows[0].top1 == rows[0].top1_error


def test_reliability_is_its_definition():
    posteriors = torch.tensor([[0.95, 0.05], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 0])
    found = reliability(posteriors, labels, bins=10)
    assert found.edges.tolist() == pytest.approx([i / 10 for i in range(11)])
    assert found.counts.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 2]  # an edge belongs to the bin below it
    assert found.confidence[9] == pytest.approx((0.95 + 1) / 2)
    assert found.accuracy[[4, 5, 8, 9]].tolist() == [0, 1, 0, 1]
    assert found.accuracy[0].isnan()
    gaps = 0.5 * 1 + 0.4 * 1 + 0.9 * 1 + 0.025 * 2
    assert found.error == pytest.approx(gaps / 5)


def test_shapes_that_do_not_fit():
    posteriors, labels = torch.full((2, 3), 1 / 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="classes must have 3 names, as many as posteriors, got 2"):
        per_class(posteriors, labels, ["a", "b"])
    with pytest.raises(ValueError, match=r"posteriors and labels must have shapes .*, got \(2, 3\) and \(1,\)"):
        reliability(posteriors, labels[:1])
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        reliability(posteriors, labels, bins=0)
