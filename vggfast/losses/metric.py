"""LPIPS over many batches, as torchmetrics has it."""

from __future__ import annotations

from os import PathLike

import torch
from torch import Tensor, nn

from vggfast._checks import check_flag
from vggfast.losses.lpips import LPIPS, NETWORKS
from vggfast.losses.trunk import check_net

REDUCTIONS = ("mean", "sum", "none", None)


class LearnedPerceptualImagePatchSimilarity(nn.Module):
    """``torchmetrics.image.LearnedPerceptualImagePatchSimilarity(net_type="vgg")``: update, compute, forward, reset.

    A plain module, and no ``torchmetrics.Metric``: it is not synchronised over ranks, has no arithmetic with other
    metrics, no plot, and takes none of Metric's own arguments. Scores are kept without their graphs.

    Args:
        net_type: as `net` of :class:`LPIPS`.
        reduction: over all images: "mean", "sum", or "none" or None for the score of each.
        normalize: images are in [0, 1], instead of [-1, 1].
        check_range: as of :class:`LPIPS`.

    Raises:
        ValueError, TypeError, and others: as of :class:`LPIPS`.
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(
        self,
        net_type: str | PathLike[str] | nn.Module = "vgg",
        reduction: str | None = "mean",
        normalize: bool = False,
        *,
        check_range: bool = True,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
        self.reduction, self.normalize = reduction, check_flag(normalize, "normalize")
        check_net(net_type, NETWORKS, "net_type")
        self.net = LPIPS(net=net_type, check_range=check_range)
        self._scores: list[Tensor] = []

    def _scored(self, img1: Tensor, img2: Tensor) -> Tensor:
        scores = self.net(img1, img2, normalize=self.normalize).flatten()
        self._scores.append(scores.detach())
        return scores

    def _reduced(self, scores: Tensor) -> Tensor:
        if self.reduction == "mean":
            return scores.mean()
        return scores.sum() if self.reduction == "sum" else scores

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Takes two batches (N, 3, H, W), as :class:`LPIPS`."""
        with torch.no_grad():
            self._scored(img1, img2)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """:meth:`update`, and the value of this batch alone, with its gradients."""
        return self._reduced(self._scored(img1, img2))

    def compute(self) -> Tensor:
        """The value of all images since the last :meth:`reset`. Raises ValueError where there are none."""
        if not self._scores:
            raise ValueError("update must be called before compute, got no images")
        return self._reduced(torch.cat([scores.to(self._scores[-1].device) for scores in self._scores]))

    def reset(self) -> None:
        """Forgets all images."""
        self._scores.clear()
