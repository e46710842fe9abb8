"""Files: written atomically, their checksums, and the state dictionaries in them."""

from vggfast.io.checksums import sha256
from vggfast.io.files import read_json, write_array, write_atomically, write_json
from vggfast.io.state_dict import METADATA, WeightFile, read_state_dict, read_weights, state_dict_of

__all__ = [
    "METADATA",
    "WeightFile",
    "read_json",
    "read_state_dict",
    "read_weights",
    "sha256",
    "state_dict_of",
    "write_array",
    "write_atomically",
    "write_json",
]
