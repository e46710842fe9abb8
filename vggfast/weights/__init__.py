"""Weights, in and out: files of ours, those of other frameworks (`formats`, `convert`), and published ones."""

from vggfast.weights.fetch import published
from vggfast.weights.files import load_model, read_state_dict, save_model, state_dict_of

__all__ = ["load_model", "published", "read_state_dict", "save_model", "state_dict_of"]
