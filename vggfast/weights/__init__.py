"""Weights, in and out: files of ours and of torchvision."""

from vggfast.weights.files import load_model, read_state_dict, save_model, state_dict_of

__all__ = ["load_model", "read_state_dict", "save_model", "state_dict_of"]
