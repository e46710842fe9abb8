"""One step of the trainer: its gradient, what it clips, averages and rounds, and whose ops compute it."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vggfast import VGG
from vggfast.data import Batch
from vggfast.distributed import DistributedContext
from vggfast.runs.config import TrainConfig
from vggfast.tasks import Classification
from vggfast.training.build import build_optimiser
from vggfast.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")


def _small(config, **changes):
    return VGG(config, 5, **{"width": 0.1, "hidden": 8, "pool_size": 1, **changes})


def _batch(counts=(True,) * 6):
    n = len(counts)
    return Batch(torch.randn(n, 3, 32, 32), torch.arange(n) % 5, torch.tensor(counts), sum(counts), [])


def _step(batch, **options):
    model = _small("A", dropout=0.0)
    config = TrainConfig(crop=32, scale_min=32, scale_max=32, **options)
    train_step = TrainStep(config, Classification(), DistributedContext(), model, build_optimiser(config, model))
    before = copy.deepcopy(model)
    return train_step(batch, 0, 0.1), model, before, train_step


@pytest.mark.parametrize("accumulate", [1, 4, 9])
def test_a_step_is_sgd_on_the_mean_loss(accumulate):
    batch = _batch((True, True, False, True, True, True))
    sums, model, before, _ = _step(batch, accumulate=accumulate, weight_decay=0.01)
    rows = batch.counts
    loss = F.cross_entropy(before(batch.images[rows]), batch.labels[rows])
    loss.backward()
    assert sums.loss == pytest.approx(5 * loss.item(), rel=1e-5)
    assert sums.images == 5
    norm = sum(p.grad.double().square().sum() for p in before.parameters()).sqrt().item()
    assert sums.grad_norm == pytest.approx(norm, rel=1e-4)
    for p, old in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.allclose(p, old - 0.1 * (old.grad + 0.01 * old), atol=1e-6)


def test_clipping_and_smoothing():
    batch = _batch()
    sums, model, before, _ = _step(batch, clip_norm=1e-3, weight_decay=0.0, label_smoothing=0.2)
    loss = F.cross_entropy(before(batch.images), batch.labels, label_smoothing=0.2)
    assert sums.loss == pytest.approx(6 * loss.item(), rel=1e-5)
    moved = sum(
        (p - old).double().square().sum() for p, old in zip(model.parameters(), before.parameters(), strict=True)
    )
    assert moved.sqrt().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


class _Names(TorchDispatchMode):
    """Notes which ops run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_the_layers_of_a_step_are_ours():
    """Of network A with batch norm: nothing is convolved, normalised or pooled by torch's kernels."""
    model, config = _small("A", batch_norm=True), TrainConfig(crop=32, scale_min=32, scale_max=32)
    train_step = TrainStep(config, Classification(), DistributedContext(), model, build_optimiser(config, model))
    with _Names() as names:
        train_step(_batch(), 0, 0.1)
    ours = {name.partition("::")[2]: count for name, count in names.counts.items() if name.startswith("vggfast::")}
    expected = {"conv": 8, "conv_dgrad": 7, "conv_wgrad": 8, "batch_norm": 8, "batch_norm_dgrad": 8}
    assert {name: ours.get(name) for name in expected} == expected
    of_torch = [name for name in names.counts if name.startswith("aten::")]
    assert not [name for name in of_torch if any(part in name for part in ("conv", "max_pool", "batch_norm"))]


def test_a_step_takes_its_momentum():
    batch = _batch()
    _, model, before, train_step = _step(batch, weight_decay=0.0)
    first = [p.detach() - old for p, old in zip(model.parameters(), before.parameters(), strict=True)]
    middle = copy.deepcopy(model)
    train_step(batch, 0, 0.1, momentum=0.25)
    for p, old, moved in zip(model.parameters(), middle.parameters(), first, strict=True):
        assert torch.allclose(p, old + 0.25 * moved - 0.1 * p.grad, atol=1e-6)


def test_a_running_average_is_kept():
    _, model, _, train_step = _step(_batch(), ema=0.75)
    assert train_step.result is not model
    for average, p in zip(train_step.result.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, p)  # it starts from the first weights
    first = copy.deepcopy(model)
    train_step(_batch(), 1, 0.1)
    for average, p, old in zip(train_step.result.parameters(), model.parameters(), first.parameters(), strict=True):
        assert torch.allclose(average, 0.75 * old + 0.25 * p, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near(precision):
    batch = _batch()
    sums, model, _, _ = _step(batch, precision=precision)
    torch.manual_seed(0)
    full, _, _, _ = _step(batch)
    assert sums.loss == pytest.approx(full.loss, rel=2e-2)
    assert all(p.dtype == torch.float32 for p in model.parameters())
