"""Our ops in a graph of torch.compile, in the place of torch's functions.

The graph is Dynamo's: torch's functions in the order of their calls, in place or not, with modules inlined, and each
node with a fake tensor that says what it gave. Where a run of functions becomes one op, nothing between them may change
a tensor. Each op gets NHWC and gives it, and its result is converted to the strides that the graph had there before, so
that views and the user see no others. Inductor fuses these conversions into its own loops; between two ops of ours
there are none.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from vggfast.ops import _library as lib
from vggfast.ops import fc
from vggfast.ops._backends import NARROW, OF_DEVICE
from vggfast.ops.conv import conv
from vggfast.ops.norm import batch_norm_op
from vggfast.ops.pool import max_pool

_CONV = inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None)
_POOL = inspect.signature(
    lambda input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False: None
)
_RELU = inspect.signature(lambda input, inplace=False: None)
_SIGNATURES: dict[Any, inspect.Signature] = {
    torch.conv2d: _CONV,
    F.batch_norm: inspect.signature(F.batch_norm),
    F.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    "relu": _RELU,
    "relu_": _RELU,
    F.max_pool2d: _POOL,
    torch.max_pool2d: _POOL,
    F.linear: inspect.signature(lambda input, weight, bias=None: None),
}
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_POOLS = (F.max_pool2d, torch.max_pool2d)
# Rooms whose functions are known: they change nothing but by their names, or by an argument that says so.
_ROOMS = ("torch", "torch.nn.functional", "torch._C._nn", "_operator", "math")
# What reads a map, and gives no view of it.
_READS = (
    torch.cat, torch.add, torch.mul, operator.add, operator.sub, operator.mul, torch.conv2d, torch.conv_transpose2d,
    F.interpolate, F.avg_pool2d, F.adaptive_avg_pool2d,
)  # fmt: skip


def rewrite(module: fx.GraphModule) -> None:
    """Puts our ops into a graph of Dynamo's, and into the parts of it that are computed again for the backward."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.tag_activation_checkpoint):
        rewrite(getattr(module, node.args[0].target))
    _Rewriting(module.graph).run()
    module.recompile()


def value_of(node: Any) -> Any:
    """The fake tensor that a node gave, or what an argument is that is no node."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def arguments(node: Any, *targets: Any) -> dict[str, Any] | None:
    """The arguments by name of a call of one of these functions; None for other nodes."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or node.target not in targets:
        return None
    try:
        bound = _SIGNATURES[node.target].bind(*node.args, **node.kwargs)
    except TypeError:
        return None  # out=, say
    bound.apply_defaults()
    return bound.arguments


def changes_nothing(node: fx.Node) -> bool:
    """Whether it is certain that a node writes into no tensor, and switches nothing."""
    if node.op in ("placeholder", "get_attr", "output"):
        return True
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    room, name = getattr(node.target, "__module__", None), getattr(node.target, "__name__", "_")
    in_place = room == "_operator" and (
        name in ("setitem", "delitem") or (name[0] == "i" and hasattr(operator, name[1:]))
    )
    told = any(each is True for each in node.args) or any(
        node.kwargs.get(each) for each in ("inplace", "training", "out")
    )
    return room in _ROOMS and not (in_place or told or name.endswith("_"))


def _is_square(setting: Any, number: int) -> bool:
    return setting == number or (isinstance(setting, tuple | list) and set(setting) == {number})


def _is_pool(given: dict[str, Any]) -> bool:
    """Whether it is one of 2x2, stride 2."""
    stride = given["kernel_size"] if given["stride"] in (None, (), []) else given["stride"]
    squares = ((given["kernel_size"], 2), (stride, 2), (given["padding"], 0), (given["dilation"], 1))
    return all(_is_square(*each) for each in squares) and given["return_indices"] is False


def _is_same_size(given: dict[str, Any], kernel: tuple[int, ...]) -> bool:
    """Whether a convolution is one of ours: 3x3 or 1x1, of stride 1, with zeros around that keep the size."""
    plain = all(_is_square(given[name], 1) for name in ("stride", "dilation", "groups"))
    padding = given["padding"]
    if kernel == (3, 3):
        return plain and (_is_square(padding, 1) or padding == "same")
    return plain and kernel == (1, 1) and (_is_square(padding, 0) or padding in ("same", "valid"))


def _are_there(*tensors: Any) -> bool:
    """Whether these are plain tensors on a device with kernels, with extents that are known before they are there."""
    return all(
        type(t) is FakeTensor
        and t.layout is torch.strided
        and t.device.type in OF_DEVICE
        and t.dtype in lib.DTYPES
        and not free_unbacked_symbols(t)
        for t in tensors
    )


def _are_maps(*tensors: Any) -> bool:
    return _are_there(*tensors) and all(t.dim() == 4 and 0 not in t.shape[1:] for t in tensors)


def _are_channels(x: Tensor, *tensors: Any) -> bool:
    """Whether batch norm's parameters and statistics, or None, are as our kernels have them beside `x`."""
    given = [t for t in tensors if t is not None]
    wide = torch.float32 if x.dtype in NARROW else x.dtype
    return (
        _are_there(*given)
        and len({t.dtype for t in given}) <= 1
        and all(t.dim() == 1 and t.dtype in (x.dtype, wide) and t.device == x.device for t in given)
    )


def _is_contiguous(t: Any) -> bool:
    return type(t) is FakeTensor and t.is_contiguous()


def _has_a_format(t: Tensor) -> bool:
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


def _folded(dtype, weight, bias, mean, var, gamma, beta, eps):
    """Weight and bias of a convolution with the batch norm behind it, in `dtype`, the weight's own; computed in float32
    where that has 16 bits."""
    wide = torch.float32 if dtype in NARROW else dtype
    scale = (var.to(wide) + eps).rsqrt()
    scale = scale if gamma is None else scale * gamma.to(wide)
    shift = -mean.to(wide) if bias is None else bias.to(wide) - mean.to(wide)
    shift = shift * scale if beta is None else shift * scale + beta.to(wide)
    return (weight.to(wide) * scale[:, None, None, None]).to(dtype), shift.to(dtype)


def _update(mean, var, results, x, momentum):
    """Running statistics by those of the batch `x`, of which batch norm gave these results."""
    count = x.size(0) * x.size(2) * x.size(3)
    mean.mul_(1 - momentum).add_(results[2], alpha=momentum)
    var.mul_(1 - momentum).add_(results[3] * (count / (count - 1)), alpha=momentum)


class _Rewriting:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.before = list(graph.nodes)
        self.places = {node: i for i, node in enumerate(self.before)}
        self.results: dict[fx.Node, fx.Node] = {}  # of conversions behind our ops: the NHWC maps
        self.converted: set[fx.Node] = set()  # the conversions before them
        self.enters_autocast = any(node.target is torch.amp.autocast_mode._enter_autocast for node in self.before)

    def run(self) -> None:
        for node in self.before:
            if not node.users:
                continue  # nobody wants it, or it is within a run that was replaced
            if (given := arguments(node, torch.conv2d)) is not None:
                self._conv(node, given)
            elif (given := arguments(node, F.batch_norm)) is not None:
                self._norm(node, given)
            elif (given := arguments(node, *_POOLS)) is not None:
                self._pool(node, given)
            elif (given := arguments(node, F.linear)) is not None:
                self._linear(node, given)
        self._shorten()

    # ---- what is taken ----------------------------------------------------------------------------------------------

    def _conv(self, node: fx.Node, given: dict[str, Any]) -> None:
        x, weight, bias, y = (value_of(each) for each in (given["input"], given["weight"], given["bias"], node))
        if not (_are_maps(x, weight, y) and _is_same_size(given, tuple(weight.shape[2:])) and _has_a_format(y)):
            return
        if not self._keeps_dtype("vggfast::conv", lib.Autocast.product, y, x, weight, bias):
            return
        run, norm_of_run = [node], self._foldable(node)
        if norm_of_run is not None:
            run.append(next(iter(node.users)))
        relu, pool = self._extend(run)
        with self.graph.inserting_before(run[-1]):
            factors = (given["weight"], given["bias"])
            if norm_of_run is not None:
                factors = self._traced(_folded, weight.dtype, *factors, *norm_of_run)
            save = (relu or pool) and value_of(run[-1]).requires_grad
            maps = self._nhwc(given["input"])
            self._give(run, self.graph.call_function(conv, (maps, *factors, relu, pool, save)))

    def _norm(self, node: fx.Node, given: dict[str, Any]) -> None:
        """One by the statistics of the batch. One by others is a part of inductor's loops, or of a convolution."""
        x, y, momentum, eps = value_of(given["input"]), value_of(node), given["momentum"], given["eps"]
        if given["training"] is not True or not (_are_maps(x, y) and x.device.type == "cpu" and _has_a_format(y)):
            return
        if not self._keeps_dtype("vggfast::batch_norm", lib.Autocast.other, y, x):
            return
        channels = [given[name] for name in ("running_mean", "running_var", "weight", "bias")]
        mean, var, *affine = channels
        if not _are_channels(x, *map(value_of, channels)) or (mean is None) != (var is None):
            return
        if not (isinstance(momentum, float) and isinstance(eps, float)) or x.shape[0] == 0:
            return
        run = [node]
        relu, pool = self._extend(run)
        with self.graph.inserting_before(run[-1]):
            save = (relu or pool) and value_of(run[-1]).requires_grad
            maps = self._nhwc(given["input"])
            results = self.graph.call_function(batch_norm_op, (maps, *affine, None, None, eps, relu, pool, save))
            if mean is not None:
                self._traced(_update, mean, var, results, maps, momentum)
            self._give(run, results)

    def _pool(self, node: fx.Node, given: dict[str, Any]) -> None:
        x, y = value_of(given["input"]), value_of(node)
        if not (_is_pool(given) and _are_maps(x, y) and _has_a_format(y)):
            return
        if self._keeps_dtype("vggfast::max_pool", lib.Autocast.other, y, x):
            with self.graph.inserting_before(node):
                maps = self._nhwc(given["input"])
                self._give([node], self.graph.call_function(max_pool, (maps, given["ceil_mode"], y.requires_grad)))

    def _linear(self, node: fx.Node, given: dict[str, Any]) -> None:
        x, weight, bias, y = (value_of(each) for each in (given["input"], given["weight"], given["bias"], node))
        if not (_are_there(x, weight, y) and x.dim() == weight.dim() == 2):
            return
        fits = fc.fits if isinstance(x.shape[0], torch.SymInt) else fc.is_ours
        if fits(x, weight, y.dtype) and self._keeps_dtype("vggfast::linear", lib.Autocast.product, y, x, weight, bias):
            with self.graph.inserting_before(node):
                result = self.graph.call_function(fc.linear_op, (given["input"], given["weight"], given["bias"]))
            self._replace([node], result)  # of linear layers there is one format

    def _keeps_dtype(self, op: str, autocast: lib.Autocast, y: Tensor, *given: Tensor | None) -> bool:
        """Whether an op of ours gives `y`'s dtype for these tensors, whatever autocast does there."""
        tensors = [t for t in given if t is not None]
        if not _are_there(*tensors) or any(t.device != y.device for t in tensors):
            return False
        same = all(t.dtype == y.dtype for t in tensors)
        kind = y.device.type
        if same and y.dtype not in NARROW:
            return True
        if not (self.enters_autocast or torch.is_autocast_enabled(kind)):
            return same
        cast = lib.cpu_dtype(op, autocast) if kind == "cpu" else torch.get_autocast_dtype(kind)
        return cast == y.dtype or (same and cast is None)

    # ---- runs -------------------------------------------------------------------------------------------------------

    def _reader(self, node: fx.Node) -> fx.Node | None:
        """The only node that reads what this one gives. Where a ReLU in place is the first, all others read its
        result."""
        users = sorted(node.users, key=lambda user: self.places.get(user, len(self.places)))
        first = arguments(users[0], *_RELUS) if users else None
        if first is not None and first["input"] is node and not changes_nothing(users[0]):
            node.replace_all_uses_with(users[0], delete_user_cb=lambda user: user is not users[0])
        return users[0] if len(node.users) == 1 else None

    def _foldable(self, node: fx.Node) -> tuple[Any, ...] | None:
        """Mean, variance, weight, bias and eps of the batch norm that alone reads a convolution and normalises by these
        statistics."""
        reader = self._reader(node)
        given = arguments(reader, F.batch_norm)
        if reader is None or given is None or given["training"] is not False or not isinstance(given["eps"], float):
            return None
        channels = [given[name] for name in ("running_mean", "running_var", "weight", "bias")]
        values = [value_of(each) for each in channels]
        statistics = [t for t in values[:2] if _are_there(t) and not t.requires_grad]
        if given["input"] is not node or node in channels or len(statistics) < 2:
            return None
        if not _are_channels(value_of(node), *values) or value_of(reader).dtype != value_of(node).dtype:
            return None
        return (*channels, given["eps"]) if self._may_wait([node, reader]) else None

    def _extend(self, run: list[fx.Node]) -> tuple[bool, bool]:
        """Adds ReLU and pool to a run where they are behind it, and says which."""
        found = []
        for targets in (_RELUS, _POOLS):
            reader = self._reader(run[-1])
            given = arguments(reader, *targets)
            fits = given is not None and (targets is _RELUS or (_is_pool(given) and given["ceil_mode"] is False))
            found.append(reader is not None and fits and self._may_wait([*run, reader]))
            if reader is not None and found[-1]:
                run.append(reader)
        return found[0], found[1]

    def _may_wait(self, run: list[fx.Node]) -> bool:
        """Whether a run may be computed where its last node is: no other node before that changes a tensor."""
        between = self.before[self.places[run[0]] : self.places[run[-1]]]
        return all(node in run or changes_nothing(node) for node in between)

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def _traced(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of tensors gives for nodes, as nodes."""
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        result = function(*(fx.Proxy(arg, tracer) if isinstance(arg, fx.Node) else arg for arg in args))
        return tuple(each.node for each in result) if isinstance(result, tuple) else None

    def _nhwc(self, x: fx.Node) -> fx.Node:
        converted = self.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
        self.converted.add(converted)
        return converted

    def _give(self, run: list[fx.Node], results: fx.Node) -> None:
        """Puts the first result of an op of ours, which is NHWC, in the place of a run, in its memory format."""
        y = self.graph.call_function(operator.getitem, (results, 0))
        y.meta["example_value"] = value_of(run[-1])
        self._replace(run, y)
        self._convert_back(y)

    def _convert_back(self, y: fx.Node) -> None:
        """Gives all readers of `y`, which is NHWC now, its values in the memory format that it had."""
        if _is_contiguous(value_of(y)):
            with self.graph.inserting_after(y):
                result = self.graph.call_method("contiguous", (y,))
            result.meta["example_value"] = value_of(y)
            y.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
            self.results[result] = y

    def _replace(self, run: list[fx.Node], result: fx.Node) -> None:
        run[-1].replace_all_uses_with(result)
        for node in reversed(run):
            self.graph.erase_node(node)

    def _shorten(self) -> None:
        """Lets our ops, and those of torch's that then give NHWC too, read NHWC maps before these are converted."""
        for node in list(self.graph.nodes):
            ours = node in self.converted
            if not (ours or (self._only_reads(node) and _is_contiguous(value_of(node)))):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._unconverted)
            if (args, kwargs) != (node.args, node.kwargs):
                node.args, node.kwargs = args, kwargs
                if not ours:
                    self._convert_back(node)
        for node in self.results:
            if not node.users:
                self.graph.erase_node(node)

    def _unconverted(self, node: fx.Node) -> fx.Node:
        """The NHWC maps that a node converts back, where nothing could write into what it gives."""
        return self.results[node] if node in self.results and all(map(self._only_reads, node.users)) else node

    def _only_reads(self, user: fx.Node) -> bool:
        return user.op == "output" or user in self.converted or (user.target in _READS and changes_nothing(user))
