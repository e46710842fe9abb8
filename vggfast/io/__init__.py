"""Files: written atomically, checked, read as state dictionaries, or by other libraries in a process apart."""

from vggfast.io.checksums import sha256
from vggfast.io.files import check_writable, read_json, write_array, write_atomically, write_json
from vggfast.io.finite import check_finite
from vggfast.io.isolated import Group, read_isolated
from vggfast.io.limits import open_file
from vggfast.io.protobuf import check_fields
from vggfast.io.safetensors_file import write_safetensors
from vggfast.io.state_dict import METADATA, WeightFile, read_state_dict
from vggfast.io.text import on_one_line, read_lines, shown
from vggfast.io.wrappings import listed, state_dict_in

__all__ = [
    "METADATA",
    "Group",
    "WeightFile",
    "check_fields",
    "check_finite",
    "check_writable",
    "listed",
    "on_one_line",
    "open_file",
    "read_isolated",
    "read_json",
    "read_lines",
    "read_state_dict",
    "sha256",
    "shown",
    "state_dict_in",
    "write_array",
    "write_atomically",
    "write_json",
    "write_safetensors",
]
