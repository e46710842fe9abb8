"""LPIPS: the distance between normalised maps of a VGG-16, each channel weighed as people saw it.

Source: Zhang, Isola, Efros, Shechtman & Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
2018; the numbers are those of its authors' package lpips 0.1.4.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast._checks import check_flag, described
from vggfast.io import read_state_dict
from vggfast.losses._base import FeatureLoss, check_fits, in_full, is_eager, pieces
from vggfast.losses.trunk import Networks, check_net, fetched, published_convolutions
from vggfast.models import VGG, vgg16
from vggfast.ops._library import wide
from vggfast.preprocessing import Preprocessing
from vggfast.pretrained import in_one_form, state_dict_of

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_CHANNELS = (64, 128, 256, 512, 512)
_EPS = 1e-10


class _Linear(nn.Module):
    """A layer's weights, by the names that they have in lpips."""

    def __init__(self, weight: Tensor, dropout: bool) -> None:
        super().__init__()
        with torch.device("meta"):
            conv = nn.Conv2d(weight.shape[1], 1, 1, bias=False)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        self.model = nn.Sequential(*([nn.Dropout()] if dropout else []), conv)

    def forward(self, maps: Tensor) -> Tensor:
        """(..., 1) of (..., C), of at least 32 bits."""
        (weight,) = self.parameters()
        return maps @ wide(weight).view(-1, 1)


class LPIPS(FeatureLoss):
    """``lpips.LPIPS(net="vgg")`` on our kernels: its arguments in their order, its state_dict, its numbers.

    Args:
        pretrained: True: the linear layers have the published weights. It may be False where `lpips` is.
        net: "vgg" or "vgg16": torchvision's VGG16_Weights.IMAGENET1K_V1, as lpips has, which torchvision downloads;
            "vgg16-conv", the authors' convolutions (``vggfast weights get vgg16-conv``), a file of ours, or a VGG-16 or
            its features, with a `preprocessing` as of :class:`vggfast.losses.Perceptual`. The linear weights were
            fitted to torchvision's network: by any other, distances are no lpips numbers, and compare with their like
            alone.
        version: "0.1".
        lpips: False leaves the linear weights out, and sums over channels.
        spatial: the distance at each pixel, (N, 1, H, W), instead of its mean (N, 1, 1, 1).
        pnet_rand: the network "vgg" has random weights instead, by which distances mean little: for tests, or until
            load_state_dict brings others.
        pnet_tune: False: the network is frozen.
        use_dropout: whether state_dict has the names that lpips has with it; nothing is dropped.
        model_path: a file with the linear weights, such as the package lpips' own weights/v0.1/vgg.pth; None is that of
            ``vggfast weights get lpips-vgg``.
        eval_mode, verbose: taken for lpips' sake; the loss computes alike in both modes, and prints nothing.
        check_range: raise an error where values are outside of their range by more than 0.5; on a GPU in the first
            call alone.

    Where all channels of a pixel are zero, the gradient is zero, and not NaN as lpips' is.

    Raises:
        FileNotFoundError, OSError, ImportError: weights are not there; the text says how to get them.
        ValueError, TypeError: an argument or an image that does not fit; the text names it.
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str | PathLike[str] | nn.Module = "vgg",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | PathLike[str] | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        check_range: bool = True,
    ) -> None:
        if str(version) != "0.1":
            raise ValueError(f"version must be '0.1', got {version!r}: 0.0 did not scale its images")
        lpips, use_dropout = check_flag(lpips, "lpips"), check_flag(use_dropout, "use_dropout")
        if not check_flag(pretrained, "pretrained") and lpips:
            raise ValueError("pretrained must be True where lpips is, got False: give lpips=False or model_path=FILE")
        if check_flag(pnet_tune, "pnet_tune"):
            raise ValueError("pnet_tune must be False, got True: give net=MODEL, which the loss copies and freezes")
        if check_flag(pnet_rand, "pnet_rand"):
            if net not in ("vgg", "vgg16"):
                raise ValueError(
                    f"pnet_rand must be False where net is none of 'vgg', 'vgg16', got net={described(net)}"
                )
            net = _random()
        check_net(net, NETWORKS)  # before anything is read, or asked for
        linear = _linear_weights(model_path) if lpips else []
        super().__init__(net, LAYERS, True, check_range, -1.0, NETWORKS)
        self.lpips, self.spatial, self.version = lpips, check_flag(spatial, "spatial"), version
        channels = tuple(self.net.widths)
        if lpips and channels != _CHANNELS:
            raise ValueError(f"net must have {_CHANNELS} channels at {', '.join(LAYERS)}, got {channels}")
        lins = [_Linear(weight.to(self.net.weight), use_dropout) for weight in linear]
        for i, lin in enumerate(lins):
            self.add_module(f"lin{i}", lin)
        if lpips:
            self.lins = nn.ModuleList(lins)
        self.train(not check_flag(eval_mode, "eval_mode"))

    def _units(self, x: Tensor, name: str, normalize: bool) -> dict[str, Tensor]:
        """Maps of at least 32 bits, whose channels have length 1 at each place."""
        maps = self.maps(x, name, 0.0 if check_flag(normalize, "normalize") else None)
        with in_full(x):
            return {layer: _unit(wide(each)) for layer, each in maps.items()}

    def target(self, in1: Tensor, normalize: bool = False) -> LPIPS:
        """Keeps the maps of `in1`, for calls with in0 alone, until another target or other weights come.

        Returns:
            The loss.
        """
        self._keep("in1", in1, lambda x, name: self._units(x, name, normalize))
        return self

    def forward(
        self, in0: Tensor, in1: Tensor | None = None, retPerLayer: bool = False, normalize: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The distances of images.

        Args:
            in0, in1: (N, 3, H, W), RGB in [-1, 1], or in [0, 1] with `normalize`; N of either may be 1. Without in1,
                the target's.
            retPerLayer: return a list of each layer's distances too.

        Returns:
            (N, 1, 1, 1), or (N, 1, H, W) if `spatial`.
        """
        if in1 is not None and self._takes_pieces(in0, in1):
            rows = self._means(in0, in1, normalize)
        else:
            ours = self._units(in0, "in0", normalize)
            if in1 is None:
                theirs = self._of_target("in1", in0)
            else:
                theirs = self._units(in1, "in1", normalize)
                check_fits(in0, in1.shape, "in1")
            with in_full(in0):
                rows = [self._rows(_squares(ours[name] - theirs[name])) for name in LAYERS]
        with in_full(in0):
            layers = [self._distance(each, i, in0) for i, each in enumerate(rows)]
            total = torch.stack(layers).sum(0)
        return (total, layers) if retPerLayer else total

    def _takes_pieces(self, in0: Tensor, in1: Tensor) -> bool:
        """Whether :meth:`_means` may be used: no gradient follows, and it gains where memory is the limit."""
        eager = all(isinstance(x, Tensor) for x in (in0, in1)) and is_eager(in0, in1)
        whole = not self.spatial and self.net.weight.dtype in (torch.float32, torch.float64)
        return eager and whole and not torch.is_grad_enabled() and in0.shape == in1.shape and in0.device.type == "cpu"

    def _means(self, in0: Tensor, in1: Tensor, normalize: bool) -> list[Tensor]:
        """(N, 1, 1, C) of each layer, piece by piece: means of squared differences of maps, channels of length 1."""
        low = 0.0 if check_flag(normalize, "normalize") else None
        ours, theirs = self.maps(in0, "in0", low), self.maps(in1, "in1", low)
        images = {name: zip(ours[name].split(1), theirs[name].split(1), strict=True) for name in LAYERS}
        return [torch.stack([_mean_squares(*pair) for pair in images[name]]) for name in LAYERS]

    def _rows(self, squares: Tensor) -> Tensor:
        """(N, H, W, C), or the means (N, 1, 1, C), of a layer's squared differences."""
        return (squares if self.spatial else squares.mean((2, 3), keepdim=True)).permute(0, 2, 3, 1)

    def _distance(self, rows: Tensor, i: int, x: Tensor) -> Tensor:
        """A layer's, (N, 1, 1, 1) or (N, 1, H, W), of :meth:`_rows`."""
        summed = (self.lins[i](rows) if self.lpips else rows.sum(3, keepdim=True)).permute(0, 3, 1, 2)
        return F.interpolate(summed, x.shape[2:], mode="bilinear") if self.spatial else summed


def _mean_squares(ours: Tensor, theirs: Tensor) -> Tensor:
    """(1, 1, C) of two images' maps (1, C, H, W)."""
    total = ours.new_zeros(ours.shape[1])
    for a, b in pieces(ours, theirs):
        total += _unit(a).sub_(_unit(b)).square_().sum(0)
    return (total / ours[0, 0].numel()).view(1, 1, -1)


# Both are done in place where no backward follows: fresh memory costs more than the arithmetic.


def _unit(maps: Tensor) -> Tensor:
    """Maps (N, C, ...) whose channels have length 1 at each place; `maps` is used up."""
    length = torch.linalg.vector_norm(maps, dim=1, keepdim=True) + _EPS
    return maps / length if maps.requires_grad else maps.div_(length)


def _squares(difference: Tensor) -> Tensor:
    """The squares of a difference, which is used up."""
    return difference.square() if difference.requires_grad else difference.square_()


def _linear_weights(path: str | PathLike[str] | None) -> list[Tensor]:
    """(1, C, 1, 1) of each layer."""
    if path is not None and not isinstance(path, str | PathLike):
        raise TypeError(f"model_path must be a file with linear weights or None, got {described(path)}")
    path = fetched("lpips-vgg") if path is None else Path(path)
    state = read_state_dict(path)
    found = [state.get(f"lin{i}.model.1.weight") for i in range(len(LAYERS))]
    weights = [weight.clone() for weight in found if weight is not None]
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != [(1, c, 1, 1) for c in _CHANNELS]:
        raise ValueError(
            f"{path} must have the linear layers of LPIPS on VGG-16, lin0.model.1.weight and on, got {shapes}"
        )
    return weights


def _random() -> nn.Module:
    model = VGG("D", init="torchvision", head="none")
    model.preprocessing = Preprocessing.torchvision()
    return model


def _of_torchvision() -> nn.Module:
    try:
        state = state_dict_of(in_one_form("IMAGENET1K_V1", None, "vgg16"))
    except (OSError, ImportError) as error:
        raise type(error)(
            f"net 'vgg' is the network that LPIPS was fitted to, and {error}. Where its file is there, give as net "
            "what `vggfast convert` makes of it; or net='vgg16-conv', whose distances are no lpips numbers"
        ) from error
    model = vgg16(weights={name: each for name, each in state.items() if name.startswith("features.")}, head="none")
    model.preprocessing = Preprocessing.torchvision()
    return model


NETWORKS: Networks = {"vgg": _of_torchvision, "vgg16": _of_torchvision, "vgg16-conv": published_convolutions}
