"""The paper's protocols in plain torch, written out: one image, one scale, one view, one crop at a time."""

import numpy as np
import torch
import torch.nn.functional as F

from vggfast.data import rescale


@torch.no_grad()
def plain_scores(model, x):
    """The map of class scores (N, classes, h, w): explicit convolutions, the FC layers' among them."""
    y = x
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d):
            y = F.conv2d(y, module.weight, module.bias, padding=module.padding)
        elif isinstance(module, torch.nn.BatchNorm2d):
            y = F.batch_norm(y, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
        elif isinstance(module, torch.nn.ReLU):
            y = F.relu(y)
        elif isinstance(module, torch.nn.MaxPool2d):
            y = F.max_pool2d(y, 2)
        else:
            y = F.local_response_norm(y, module.size, module.alpha, module.beta, module.k)
    for i, extent in ((0, model.arguments["pool_size"]), (3, 1), (6, 1)):
        layer = model.classifier[i]
        y = F.conv2d(y, layer.weight.reshape(len(layer.bias), -1, extent, extent), layer.bias)
        y = y if i == 6 else F.relu(y)
    return y


def _pixels(image, scale, preprocessing):
    pixels = np.asarray(image if scale is None else rescale(image, scale), dtype=np.float64)
    return torch.from_numpy((pixels - preprocessing.mean) / preprocessing.std).float().permute(2, 0, 1)[None]


def plain_dense(model, image, preprocessing, scales, flip, pool="mean"):
    """Posteriors (classes,) of one RGB image; `scales` None takes it at its size."""
    views = []
    for scale in scales or (None,):
        x = _pixels(image, scale, preprocessing)
        for view in (x, x.flip(3)) if flip else (x,):
            scores = plain_scores(model, view)
            views.append((scores.mean((2, 3)) if pool == "mean" else scores.sum((2, 3))).softmax(1))
    return torch.cat(views).mean(0)


def plain_multi_crop(model, image, preprocessing, scales, flip, grid, crop):
    """Posteriors (classes,) averaged over every crop of a grid, every mirror image and every scale."""
    views = []
    for scale in scales:
        x = _pixels(image, scale, preprocessing)
        for row in range(grid):
            for column in range(grid):
                top, left = (
                    round(step * (extent - crop) / (grid - 1)) if grid > 1 else (extent - crop) // 2
                    for step, extent in ((row, x.shape[2]), (column, x.shape[3]))
                )
                part = x[:, :, top : top + crop, left : left + crop]
                for view in (part, part.flip(3)) if flip else (part,):
                    views.append(plain_scores(model, view).mean((2, 3)).softmax(1))
    return torch.cat(views).mean(0)
