"""Boxes: overlap against a loop, merging by hand, and moves against rectangles painted into pictures."""

import math

import numpy as np
import pytest
import torch

from vggfast.data import Augmentation, CentreCrop, ColourStatistics, Preprocessing
from vggfast.data.transforms import crop_boxes, crop_pictures, uncrop_boxes
from vggfast.localisation import centre_form, corner_form, iou, merge

PLAIN = Preprocessing((0.0, 0.0, 0.0))


def _random_boxes(n, seed=0):
    first = np.random.default_rng(seed).random((n, 2, 2))
    return torch.from_numpy(np.sort(first, 1).reshape(n, 4))


def _overlap(a, b):
    """Of two boxes, by hand."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union else 0.0


def test_the_two_forms_are_each_others_inverse():
    boxes = _random_boxes(20)
    torch.testing.assert_close(corner_form(centre_form(boxes)), boxes)
    assert centre_form(torch.tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [0.25, 0.5, 0.5, 0.5]
    assert corner_form(torch.tensor([[0.5, 0.5, 1.0, 0.5]])).tolist() == [[0.0, 0.25, 1.0, 0.75]]


def test_iou_is_that_of_a_loop():
    a, b = _random_boxes(17), _random_boxes(11, seed=1)
    b[0] = a[0]  # equal
    b[1] = a[1] + 2  # apart
    b[2, 2] = b[2, 0]  # no area
    expected = torch.tensor([[_overlap(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(iou(a, b), expected)
    assert iou(a, b)[0, 0] == 1
    torch.testing.assert_close(iou(a[None, :11, None], b[None, :, None])[0, :, 0, 0], expected[:11].diagonal())


@pytest.mark.parametrize(
    "box", [[0.2, 0.2, 0.2, 0.9], [0.8, 0.8, 0.2, 0.2], [math.nan, 0, 1, 1], [-math.inf, 0, math.inf, 1]]
)
def test_what_has_no_area_or_is_not_finite_overlaps_nothing(box):
    box = torch.tensor([box])
    assert iou(box, torch.tensor([[0.0, 0.0, 1.0, 1.0]])).item() == 0
    assert iou(box, box).item() == 0


# ---- merging ------------------------------------------------------------------------------------------------------


def test_equal_boxes_merge_and_others_stay():
    box, far = [0.1, 0.1, 0.4, 0.5], [0.6, 0.6, 0.9, 0.9]
    merged, scores = merge(torch.tensor([box, far, box, box]), torch.tensor([1.0, 2.5, 2.0, 4.0]), 0.0)
    torch.testing.assert_close(merged, torch.tensor([box, far]).double())
    assert scores.tolist() == [7, 2.5]


def test_the_best_pair_merges_first_and_a_box_counts_as_all_that_went_into_it():
    """Three unit squares side by side: the pair 0.1 apart is first, then their mean and the one 0.4 from it."""
    squares = torch.tensor([[x, 0.0, x + 1, 1.0] for x in (0.0, 0.35, 0.45)])

    def match(distance):
        return distance + 1 - (1 - distance) / (1 + distance)

    boxes, scores = merge(squares, torch.tensor([1.0, 2.0, 4.0]), match(0.4) - 1e-6)
    assert scores.tolist() == [6, 1]
    torch.testing.assert_close(boxes[:, 0], torch.tensor([0.4, 0.0]).double())
    boxes, scores = merge(squares, torch.tensor([1.0, 2.0, 4.0]), match(0.4) + 1e-6)
    assert scores.tolist() == [7]
    torch.testing.assert_close(boxes[0], torch.tensor([0.8 / 3, 0, 1 + 0.8 / 3, 1]).double())


def test_a_match_does_not_depend_on_the_unit():
    boxes, scores = _random_boxes(12), torch.arange(12.0)
    for threshold in (0.5, 1.0):
        once, twice = merge(boxes, scores, threshold), merge(2 * boxes + 3, scores, threshold)
        torch.testing.assert_close(2 * once[0] + 3, twice[0])
        torch.testing.assert_close(once[1], twice[1])


def test_merging_ends_in_boxes_that_do_not_match():
    boxes, scores = merge(_random_boxes(40), torch.ones(40), 1.5)
    assert 1 < len(boxes) < 40
    assert scores.sum() == 40
    assert (scores.diff() <= 0).all()
    assert torch.equal(merge(boxes, scores, 1.5)[0], boxes)


def test_few_boxes_and_odd_ones_merge():
    empty = merge(torch.zeros(0, 4), torch.zeros(0))
    assert [len(each) for each in empty] == [0, 0]
    points = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.8, 0.8, 0.8, 0.8]])
    assert len(merge(points, torch.ones(2), 100.0)[0]) == 2  # infinitely far, in units of no size
    assert len(merge(torch.full((3, 4), math.nan), torch.ones(3))[0]) == 3


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "text"),
    [
        ((3, 4), (2,), 1.0, r"boxes and scores must have shapes \(n, 4\) and \(n,\), got \(3, 4\) and \(2,\)"),
        ((3, 5), (3,), 1.0, r"\(3, 5\)"),
        ((3, 4), (3,), -1.0, "threshold must be at least 0, got -1.0"),
    ],
)
def test_merge_refuses(boxes, scores, threshold, text):
    with pytest.raises(ValueError, match=text):
        merge(torch.zeros(boxes), torch.zeros(scores), threshold)


# ---- boxes move with their pictures -------------------------------------------------------------------------------


def _painted(generator):
    """(picture (H, W, 3), box in pixels): a white rectangle on black."""
    height, width = generator.integers(40, 90, 2)
    left, top = generator.integers(0, width // 2), generator.integers(0, height // 2)
    right, bottom = generator.integers(left + 8, width + 1), generator.integers(top + 8, height + 1)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top:bottom, left:right] = 255
    return picture, np.array([left, top, right, bottom])


def _edges(values):
    """Where a white bar on black begins and ends in a row of values, to a fraction of a pixel; None where cut off."""
    above = np.flatnonzero(values > 127.5)
    first, last = above[0], above[-1]

    def between(outer, inner):
        return (127.5 - values[outer]) / (values[inner] - values[outer]) * (inner - outer) + outer + 0.5

    begin = None if first == 0 else between(first - 1, first)
    end = None if last == len(values) - 1 else between(last + 1, last)
    return begin, end


@pytest.mark.parametrize("seed", range(40))
def test_a_crop_has_its_box_where_the_painted_rectangle_is(seed):
    """Rescaled, cropped, mirrored by the native code; the rectangle is found again in the pixels."""
    generator = np.random.default_rng(seed)
    crop = 48
    statistics = ColourStatistics(np.zeros(3), np.ones(3), np.eye(3), np.ones(3))
    transform = Augmentation(crop, (56, 80), True, 0.0, statistics, PLAIN)
    picture, pixels = _painted(generator)
    geometry = transform.draw(picture.shape[:2], generator)
    extents = np.array([picture.shape[1], picture.shape[0]] * 2)
    centre = crop_boxes((pixels / extents)[None], [geometry], crop)
    left, top, right, bottom = crop * corner_form(torch.from_numpy(centre))[0].numpy()

    seen = crop_pictures([picture], [geometry], transform)[0, 0].numpy()
    rows, columns = seen.max(1), seen.max(0)
    if not rows.max() > 250:
        assert min(right, bottom, crop - left, crop - top) < 2  # the crop has missed the object
        return
    for (begin, end), (first, last) in ((_edges(columns), (left, right)), (_edges(rows), (top, bottom))):
        assert begin == pytest.approx(first, abs=0.15) if begin is not None else first < 1
        assert end == pytest.approx(last, abs=0.15) if end is not None else last > crop - 1
    np.testing.assert_allclose(uncrop_boxes(centre, [geometry], crop)[0], pixels / extents, atol=1e-12)


def test_boxes_by_hand():
    """A picture of 100x50, drawn at 120x60, of which the right 60 pixels are taken."""
    box = np.array([[0.5, 0.0, 0.75, 0.5]])  # in the crop: from 0 to 30 of 60 pixels across, 0 to 30 down
    geometry = CentreCrop(60, 60, PLAIN).draw((50, 100), np.random.default_rng())._replace(corner=(0, 60))
    assert crop_boxes(box, [geometry], 60).tolist() == [[0.25, 0.25, 0.5, 0.5]]
    assert crop_boxes(box, [geometry._replace(flip=True)], 60).tolist() == [[0.75, 0.25, 0.5, 0.5]]
    beyond = crop_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), [geometry], 60)
    assert beyond.tolist() == [[0.0, 0.5, 2.0, 1.0]]  # half of it lies left of the crop
