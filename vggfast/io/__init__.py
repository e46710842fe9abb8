"""Files: written atomically, their checksums, and the state dictionaries in them."""

from vggfast.io.checksums import sha256
from vggfast.io.files import read_json, write_array, write_atomically, write_json
from vggfast.io.state_dict import METADATA, WeightFile, read_state_dict, read_weights, state_dict_of
from vggfast.io.text import on_one_line, read_lines, shown

__all__ = [
    "METADATA",
    "WeightFile",
    "on_one_line",
    "read_json",
    "read_lines",
    "read_state_dict",
    "read_weights",
    "sha256",
    "shown",
    "state_dict_of",
    "write_array",
    "write_atomically",
    "write_json",
]
