"""A network as a list of layers: what they are, and who reads them from a tree of modules."""

from vggfast.graph import layers
from vggfast.graph.compare import differences
from vggfast.graph.copying import shared_copy
from vggfast.graph.fuse import fold, folded, runs
from vggfast.graph.geometry import Geometry, geometry
from vggfast.graph.guard import check, check_replaced, is_frozen_batch_norm, is_optimized, know, runs_no_others, unknown
from vggfast.graph.names import check_taps, fc_names, trunk_names
from vggfast.graph.network import Head, Network, head_of, linear_head, whole
from vggfast.graph.recognise import Node, recognise, recognise_one
from vggfast.graph.strides import is_known_code, needs_nchw

__all__ = [
    "Geometry",
    "Head",
    "Network",
    "Node",
    "check",
    "check_replaced",
    "check_taps",
    "differences",
    "fc_names",
    "fold",
    "folded",
    "geometry",
    "head_of",
    "is_frozen_batch_norm",
    "is_known_code",
    "is_optimized",
    "know",
    "layers",
    "linear_head",
    "needs_nchw",
    "recognise",
    "recognise_one",
    "runs",
    "runs_no_others",
    "shared_copy",
    "trunk_names",
    "unknown",
    "whole",
]
