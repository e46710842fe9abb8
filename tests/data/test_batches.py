"""Batches: the same rows for any number of workers and ranks, from anywhere in an epoch, with images that are bad."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast.data import Augmentation, Batches, CentreCrop, Preprocessing, colour_statistics, open_dataset
from vggfast.data.sources.base import ImageSet

PREPROCESSING = Preprocessing((120.0, 110.0, 100.0), (50.0, 51.0, 52.0))
CENTRE = CentreCrop(8, 10, PREPROCESSING)


def augmentation():
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    return Augmentation(8, (9, 14), True, 0.1, colour_statistics([Image.fromarray(noise)]), PREPROCESSING)


class Pictures:
    """Reads picture `index`, of a size and colours of its own; those of `bad` do not decode."""

    def __init__(self, bad=()):
        self.bad, self.read = set(bad), []

    def __call__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise ValueError(f"{index}.png: not an image that decodes")
        generator = np.random.default_rng(index)
        height, width = generator.integers(9, 20, 2)
        return generator.integers(0, 256, (height, width, 3), np.uint8)


def pictures(n=17, bad=()):
    return ImageSet("pictures", ["even", "odd"], np.arange(n) % 2, range(n), Pictures(bad))


def batches(images, size, **options):
    shuffle = options.pop("shuffle", True)
    return Batches(images, augmentation() if shuffle else CENTRE, size, shuffle=shuffle, seed=5, **options)


def joined(parts):
    """The rows that count of the ranks' parts of a batch, in order."""
    return (
        torch.cat([part.images[part.counts] for part in parts]),
        torch.cat([part.labels[part.counts] for part in parts]),
    )


@pytest.fixture(scope="module")
def alone():
    """Two epochs on one rank, by batch size."""
    return {size: [list(batches(pictures(), size).epoch(epoch)) for epoch in (0, 1)] for size in (5, 8, 16, 17, 30)}


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(alone, workers):
    found = list(batches(pictures(), 5, workers=workers).epoch(1))
    assert len(found) == 4
    for mine, other in zip(alone[5][1], found, strict=True):
        assert torch.equal(mine.images, other.images)
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(mine.labels, other.labels)
        assert torch.equal(mine.counts, other.counts)
        assert (other.total, other.bad) == (mine.total, [])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("size", [5, 8, 16, 17, 30])  # last batches of 2, 1, 1, 17 and 17 images
def test_ranks_share_the_same_batches(alone, size, ranks):
    shares = [list(batches(pictures(), size, rank=rank, ranks=ranks).epoch(1)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(alone[size][1])}
    for whole, *parts in zip(alone[size][1], *shares, strict=True):
        images, labels = joined(parts)
        assert torch.equal(images, whole.images)
        assert torch.equal(labels, whole.labels)
        assert {part.total for part in parts} == {len(whole.images)}
        lengths = [int(part.counts.sum()) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        for part in parts:
            assert len(part.images) >= 1
            if not part.counts.any():  # an empty share: the batch's first image stands in
                assert torch.equal(part.images, whole.images[:1])


def test_workers_and_ranks_together(alone):
    shares = [list(batches(pictures(), 8, rank=rank, ranks=3, workers=2).epoch(0)) for rank in range(3)]
    for whole, *parts in zip(alone[8][0], *shares, strict=True):
        assert torch.equal(joined(parts)[0], whole.images)


def test_epochs_and_seeds_differ(alone):
    first, second = (torch.cat([batch.labels for batch in epoch]) for epoch in alone[5])
    assert first.sum() == second.sum() == 8
    assert not torch.equal(alone[5][0][0].images, alone[5][1][0].images)
    other = Batches(pictures(), augmentation(), 5, shuffle=True, seed=6)
    assert not torch.equal(next(iter(other.epoch(0))).images, alone[5][0][0].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_within_an_epoch(alone, workers):
    found = list(batches(pictures(), 5, workers=workers).epoch(1, first=2))
    assert len(found) == 2
    for mine, other in zip(alone[5][1][2:], found, strict=True):
        assert torch.equal(mine.images, other.images)


def test_what_is_resumed_behind_is_not_decoded():
    images = pictures()
    list(batches(images, 5).epoch(0, first=3))
    assert len(images.read.read) == 2
    assert list(batches(images, 5).epoch(0, first=4)) == []


def test_the_last_smaller_batch():
    kept, left = batches(pictures(), 5), batches(pictures(), 5, keep_last=False)
    assert (len(kept), len(left)) == (4, 3)
    assert [len(batch.images) for batch in kept.epoch()] == [5, 5, 5, 2]
    assert [batch.total for batch in left.epoch()] == [5, 5, 5]


def test_torchs_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(batches(pictures(), 5).epoch())
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_is_in_order():
    found = list(batches(pictures(), 5, shuffle=False).epoch())
    assert torch.cat([batch.labels for batch in found]).tolist() == [i % 2 for i in range(17)]


# ---- images that do not decode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_fail_names_the_file(workers, shuffle):
    with pytest.raises(ValueError, match=r"^7\.png: not an image that decodes$"):
        list(batches(pictures(bad=[7]), 5, workers=workers, shuffle=shuffle).epoch())


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_the_next_image_takes_the_row(alone, workers):
    bad = [3, 7, 8, 16]
    found = list(batches(pictures(bad=bad), 5, workers=workers, on_bad_image="skip").epoch(1))
    order = np.arange(17)
    np.random.default_rng((5, 1)).shuffle(order)
    good = dict(zip(order.tolist(), torch.cat([batch.images for batch in alone[5][1]]), strict=True))
    stand_in = {3: 4, 7: 9, 8: 9, 16: 0}
    rows, labels = (torch.cat([getattr(batch, name) for batch in found]) for name in ("images", "labels"))
    for index, row, label in zip(order.tolist(), rows, labels, strict=True):
        assert torch.equal(row, good[stand_in.get(index, index)])
        assert label == stand_in.get(index, index) % 2
    assert all(batch.counts.all() for batch in found)
    assert [batch.total for batch in found] == [5, 5, 5, 2]
    messages = [message for batch in found for message in batch.bad]
    assert sorted(messages) == sorted(f"{index}.png: not an image that decodes" for index in bad)


def test_in_validation_the_row_does_not_count():
    whole = list(batches(pictures(), 5, shuffle=False).epoch())
    found = list(batches(pictures(bad=[0, 7]), 5, shuffle=False, on_bad_image="skip").epoch())
    for batch, other in zip(found, whole, strict=True):
        assert torch.equal(batch.images[batch.counts], other.images[batch.counts])
        assert not batch.images[~batch.counts].any()
        assert batch.total == other.total
    assert [(~batch.counts).nonzero().flatten().tolist() for batch in found] == [[0], [2], [], []]
    assert [batch.bad for batch in found[:2]] == [[f"{i}.png: not an image that decodes"] for i in (0, 7)]


def test_a_filler_reports_nothing_that_its_own_rank_does():
    shares = [
        list(batches(pictures(16, bad=[15]), 15, shuffle=False, on_bad_image="skip", rank=rank, ranks=2).epoch())
        for rank in range(2)
    ]
    last = [share[-1] for share in shares]
    assert sum(len(part.bad) for part in last) == 1
    assert not any(part.counts.any() for part in last)


def test_bad_images_are_the_same_over_ranks():
    whole = list(batches(pictures(bad=[2, 3]), 5, on_bad_image="skip").epoch())
    shares = [list(batches(pictures(bad=[2, 3]), 5, on_bad_image="skip", rank=i, ranks=3).epoch()) for i in range(3)]
    for one, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(joined(parts)[0], one.images)
        assert sorted(one.bad) == sorted(message for part in parts for message in part.bad)


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_image_decodes(shuffle):
    found = batches(pictures(3, bad=[0, 1, 2]), 3, shuffle=shuffle, on_bad_image="skip")
    if shuffle:
        with pytest.raises(ValueError, match=r"pictures: none of its 3 images decodes; the first: \d\.png"):
            list(found.epoch())
    else:
        (batch,) = found.epoch()
        assert not batch.counts.any()
        assert len(batch.bad) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "ranks": 2}, "rank must be at least 0 and less than ranks, 2, got 2"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of fail, skip, got 'ignore'"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        batches(pictures(), 5, **options)


def test_no_images():
    with pytest.raises(ValueError, match="images must have at least one image of pictures, got none"):
        batches(pictures(0), 5)


# ---- what travels to a worker ---------------------------------------------------------------------------------------


def test_a_million_images_travel_light(tmp_path):
    from vggfast.data.sources.base import from_files

    names = [f"n{i:08d}/n{i:08d}_{i}.JPEG" for i in range(0, 1_000_000, 10)]
    images = from_files("many", ["a"], np.zeros(len(names), np.int64), names, tmp_path)
    sent = pickle.dumps(images)
    assert len(sent) < 60 * len(names)
    assert pickle.loads(sent).source(99_999) == str(tmp_path / names[99_999])


def test_a_cache_travels_without_its_pixels(photos, tmp_path):
    from vggfast.data import build_cache

    build_cache(f"imagefolder:{photos}", tmp_path / "cache", None)
    images = open_dataset(f"cache:{tmp_path / 'cache'}", "train")
    first = images.pixels(0)
    sent = pickle.dumps(images)
    assert len(sent) < 5000
    assert np.array_equal(pickle.loads(sent).pixels(0), first)
