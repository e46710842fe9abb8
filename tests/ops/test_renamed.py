"""Names of ops that have changed: the old ones work, with a warning that says the new one."""

import pytest
import torch

from vggfast import ops


def test_class_scores_is_mean_posteriors():
    with pytest.warns(DeprecationWarning, match=r"vggfast.ops.class_scores is now vggfast.ops.mean_posteriors"):
        assert ops.class_scores is ops.mean_posteriors


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'posterior'"):
        _ = ops.posterior


def test_the_argument_deviation_is_std():
    images = torch.full((1, 2, 2, 3), 10, dtype=torch.uint8)
    with pytest.warns(DeprecationWarning, match="deviation of prepare_images is now std"):
        y = ops.prepare_images(images, size=(2, 2), deviation=(2.0, 2.0, 2.0))
    assert torch.equal(y, ops.prepare_images(images, size=(2, 2), std=(2.0, 2.0, 2.0)))


def test_the_old_and_the_new_name_of_an_argument_together():
    images, half = torch.zeros(1, 2, 2, 3, dtype=torch.uint8), (2.0, 2.0, 2.0)
    with pytest.raises(TypeError, match="prepare_images got both std and deviation, its former name"):
        ops.prepare_images(images, size=(2, 2), deviation=half, std=half)
