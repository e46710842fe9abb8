"""Weights, in and out: files of ours, those of other frameworks (`formats`, `convert`), and published ones."""

from vggfast.io import read_state_dict
from vggfast.pretrained import state_dict_of
from vggfast.weights.fetch import published
from vggfast.weights.files import load_model, save_model

__all__ = ["load_model", "published", "read_state_dict", "save_model", "state_dict_of"]
