"""Learning classes: its losses and errors, and which task a configuration names."""

import pytest
import torch

from vggfast.runs.config import TrainConfig
from vggfast.tasks import Classification, Localisation, task_of


def test_losses_and_errors_of_each_image():
    scores = torch.tensor([[9.0, 0, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0]])
    labels = torch.tensor([0, 4, 6])  # the first class, the fifth, the last
    losses, first, second = Classification().measure(scores, 0.0, labels)
    expected = scores.double().logsumexp(1) - scores.double()[torch.arange(3), labels]
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert first.tolist() == [False, True, True]
    assert second.tolist() == [False, False, True]


def test_smoothing_spreads_the_label():
    scores, labels = torch.randn(4, 5, dtype=torch.float64), torch.arange(4)
    losses = Classification().measure(scores, 0.2, labels)[0]
    shares = torch.full((4, 5), 0.04, dtype=torch.float64)
    shares[torch.arange(4), labels] += 0.8
    torch.testing.assert_close(losses, -(shares * scores.log_softmax(1)).sum(1))


@pytest.mark.parametrize(
    ("predict", "kind", "outputs"),
    [("classes", Classification, 7), ("box", Localisation, 4), ("boxes", Localisation, 28)],
)
def test_the_configuration_names_the_task(predict, kind, outputs):
    task = task_of(TrainConfig(predict=predict))
    assert type(task) is kind
    assert task.outputs(7) == outputs


def test_one_class_is_none_to_learn(photos):
    parent = photos.parent / "above"
    parent.mkdir()
    (parent / "photos").symlink_to(photos)
    with pytest.raises(ValueError, match=r"above must have at least two classes to tell apart, got \['photos'\]"):
        Classification().open_splits(TrainConfig(data=f"imagefolder:{parent}"))
