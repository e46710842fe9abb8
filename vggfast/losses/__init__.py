"""Losses on the maps of a frozen network: perceptual, style, LPIPS. Modules, with gradients for the images alone.

Weights: ``vggfast weights get vgg16-conv`` and, for LPIPS, ``vggfast weights get lpips-vgg``; or any VGG as `net`.
"""

from vggfast.losses.lpips import LPIPS
from vggfast.losses.metric import LearnedPerceptualImagePatchSimilarity
from vggfast.losses.perceptual import Perceptual
from vggfast.losses.style import ContentStyle, Style, gram_matrix

__all__ = ["LPIPS", "ContentStyle", "LearnedPerceptualImagePatchSimilarity", "Perceptual", "Style", "gram_matrix"]
