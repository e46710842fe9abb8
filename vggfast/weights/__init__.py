"""Weights, in and out: files of ours, those of other frameworks (`formats`, `convert`), and published ones."""

from __future__ import annotations

from pathlib import Path

from vggfast.io import read_state_dict
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing
from vggfast.pretrained import state_dict_of
from vggfast.weights.fetch import published
from vggfast.weights.files import load_model, save_model

__all__ = ["load", "load_model", "published", "read_state_dict", "save_model", "state_dict_of"]


def load(path: str | Path, *, preprocessing: Preprocessing | None = None) -> VGG:
    """The network of a weight file, in evaluation mode, with all that the file says of it.

    ``model.preprocessing(picture)`` makes its input of a picture, ``model.classes`` names its outputs (None where no
    file does), ``model.quantisation`` has the scales of a network of 8 bits.

    Args:
        path: a file of ours, as a run's model.safetensors, or of any framework that ``vggfast convert`` reads.
        preprocessing: what the network takes, where the file does not say it, or says what is wrong.

    Raises:
        FileNotFoundError, ValueError: no such file, or not what it should be; the text names file and tensor.
        ImportError: a package that reads this format is not installed; the text names it.
    """
    from vggfast.weights.formats import read  # which knows many frameworks

    return read(path, preprocessing=preprocessing).model
