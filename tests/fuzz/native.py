"""Calls of the ops, their derivatives, engines, modules and bindings with tensors of every kind that torch has."""

from __future__ import annotations

import contextlib
import functools
import random as random_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.func import grad, vmap
from torch.nn.parameter import is_lazy

import vggfast
from tests.fuzz.calls import CALLS, EXTENTS, draw, image_shape
from tests.fuzz.harness import Different, attempt
from tests.fuzz.tensors import ODD, SAME
from tests.support.comparisons import relative_error
from vggfast import _native, ops
from vggfast.ops import reference
from vggfast.ops.conv import conv_dgrad, conv_wgrad
from vggfast.ops.fc import linear_dgrad, linear_wgrad
from vggfast.ops.lrn import lrn_dgrad
from vggfast.ops.mask import mask_gather, mask_scatter

Random = random_module.Random
REFUSALS = (ValueError, TypeError, MemoryError)


# ---- comparisons ----------------------------------------------------------------------------------------------------


def _tolerance(dtype: torch.dtype) -> float:
    """Of a relative L2 error: the project's rules, and room for what ReLU and pool select otherwise after rounding."""
    return {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 8 * torch.finfo(dtype).eps)


def _compare(what: str, ours: Tensor, exact: Tensor) -> None:
    if ours.shape != exact.shape:
        raise Different(f"{what}: shape {tuple(ours.shape)}, not {tuple(exact.shape)}")
    ours, dtype = ours.detach().double().resolve_neg(), ours.dtype
    exact = exact.detach()
    if not torch.equal(ours.isnan(), exact.isnan()):
        raise Different(f"{what}: NaN in other places")
    ours, exact = ours.nan_to_num(), exact.nan_to_num()
    if float((ours - exact).norm()) <= 1e-3 * _tolerance(dtype):  # of sums that cancel, rounding errors are left
        return
    if (error := relative_error(ours, exact)) > _tolerance(dtype):
        raise Different(f"{what}: off by {error:g}")


def _doubles(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.Tensor.detach(t).as_subclass(Tensor).resolve_neg().double().clone() if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def _value(random: Random, name: str, tensors: dict[str, Any], options: dict[str, Any]) -> None:
    """The op's value against the reference's, in one of the ways to call it."""
    ours, theirs = getattr(ops, name), getattr(reference, name)
    exact = theirs(**_doubles(tensors), **(options | ({"dtype": torch.float64} if "dtype" in options else {})))
    manner = random.choice(["plain", "no_grad", "inference", "autocast", "threads", "vmap"])
    with contextlib.ExitStack() as stack:
        if manner == "no_grad":
            stack.enter_context(torch.no_grad())
        elif manner == "inference":
            stack.enter_context(torch.inference_mode())
        elif manner == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        elif manner == "threads":
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(random.randint(1, 5))
        if manner == "vmap" and next(iter(tensors.values())).dim() and not _is_inference(tensors):
            names = list(tensors)
            mapped = [random.random() < 0.6 for _ in names]
            if any(mapped):
                dims = tuple(0 if m else None for m in mapped)
                args = [
                    torch.stack([t.as_subclass(Tensor), t.as_subclass(Tensor)]) if m else t
                    for t, m in zip(tensors.values(), mapped, strict=True)
                ]
                y = vmap(lambda *each: ours(**dict(zip(names, each, strict=True)), **options), dims)(*args)
                _compare(f"{name} in vmap", y[0], exact)
                _compare(f"{name} in vmap", y[1], exact)
                return
        y = ours(**tensors, **options)
    _compare(f"{name} ({manner})", y, exact)


def _is_inference(tensors: dict[str, Tensor]) -> bool:
    return any(t.is_inference() for t in tensors.values())


def _gradients(random: Random, name: str, tensors: dict[str, Any], options: dict[str, Any], forms: Any) -> None:
    """First and second derivatives against the reference's, in float64."""
    ours, theirs = getattr(ops, name), getattr(reference, name)
    floats = [key for key, t in tensors.items() if t.is_floating_point()]
    base = {key: t.double().mul(4).round() for key, t in tensors.items()}  # sums are exact: equal maxima stay equal
    made = {key: random.choice(forms)(random, t.detach()) for key, t in base.items()}
    if _is_inference(made):
        return
    exact = {key: t.as_subclass(Tensor).resolve_neg().clone().requires_grad_() for key, t in made.items()}
    made = {key: t.detach().requires_grad_() for key, t in made.items()}
    y, z = ours(**made, **options), theirs(**exact, **options)
    seed = random.choice(forms)(random, draw(random, tuple(z.shape), torch.float64))
    if seed.is_inference():
        return
    plain = seed.detach().as_subclass(Tensor).resolve_neg().clone()
    got = torch.autograd.grad(y, [made[key] for key in floats], seed.detach(), create_graph=True)
    want = torch.autograd.grad(z, [exact[key] for key in floats], plain, create_graph=True)
    for key, a, b in zip(floats, got, want, strict=True):
        _compare(f"{name}: gradient of {key}", a, b)
    if name == "max_pool2x2" or not any(t.requires_grad for t in want):
        return
    a, b = (sum(t.pow(2).sum() for t in grads if t.requires_grad) for grads in (got, want))
    first = torch.autograd.grad(a, [made[key] for key in floats], allow_unused=True, materialize_grads=True)
    second = torch.autograd.grad(b, [exact[key] for key in floats], allow_unused=True, materialize_grads=True)
    for key, one, two in zip(floats, first, second, strict=True):
        _compare(f"{name}: second derivative of {key}", one, two)


# ---- kinds of cases -------------------------------------------------------------------------------------------------


def _same_case(random: Random) -> bool:
    """Tensors in every layout: the reference's value."""
    name, tensors, options = random.choice(CALLS)(random)
    forms = list(SAME.values())
    if random.random() < 0.4 and name != "prepare_images":
        _gradients(random, name, tensors, options, forms)
        return True
    made = {key: random.choice(forms)(random, t) for key, t in tensors.items()}
    if _is_inference(made) or name == "prepare_images":  # what may have no gradient
        made = {key: t.detach() for key, t in made.items()}
    if random.random() < 0.1 and "weight" in made and made["x"].shape == made["weight"].shape:
        made["weight"] = made["x"]
    _value(random, name, made, options)
    return True


def _odd_case(random: Random) -> bool:
    """One tensor is what no kernel takes: a refusal that names it, or a value of the right shape."""
    name, tensors, options = random.choice(CALLS)(random)
    wrong = random.choice(list(tensors))
    try:
        made = random.choice(list(ODD.values()))(random, tensors[wrong])
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # torch has no such tensor
        return False
    module = random.random() < 0.3 and _module_of(name, tensors, options)
    call = functools.partial(module) if module and wrong == "x" else functools.partial(getattr(ops, name), **options)
    # A module leaves whole numbers to torch's pool, which has none for some of their dtypes.
    refusals = (*REFUSALS, NotImplementedError) if module else REFUSALS
    arguments = {"x": made} if module and wrong == "x" else tensors | {wrong: made}
    positional = list(arguments.values()) if module and wrong == "x" else []
    with torch.random.fork_rng(devices=[]):
        y = attempt(call, *positional, refusals=refusals, **({} if positional else arguments))
    return y is not None


def _module_of(name: str, tensors: dict[str, Tensor], options: dict[str, Any]) -> nn.Module | None:
    if name == "max_pool2x2":
        return vggfast.nn.MaxPool2x2(**options)
    if name == "local_response_norm":
        return vggfast.nn.LocalResponseNorm(**options)
    if name in ("conv3x3", "conv1x1"):
        cout, cin = tensors["weight"].shape[:2]
        conv = (vggfast.nn.Conv3x3 if name == "conv3x3" else vggfast.nn.Conv1x1)(cin, cout)
        return vggfast.nn.FusedSequential(conv, nn.ReLU()) if options["relu"] else conv
    return None


NUMBERS = (0, -1, 2**31, 2**63, 2**70, -(2**70), 1.5, float("nan"), "3", None, True, [1], np.int64(3), np.float32(2))


def _argument_case(random: Random) -> bool:
    """A number or switch of an op, an engine or a module that may be anything."""
    name, tensors, options = random.choice(CALLS)(random)
    if not options:
        return _engine_argument(random)
    wrong = random.choice(list(options))
    call = functools.partial(getattr(ops, name), **tensors)
    return attempt(call, refusals=REFUSALS, **(options | {wrong: random.choice(NUMBERS)})) is not None


def _engine_argument(random: Random) -> bool:
    wrong = random.choice(["threads", "batch", "size", "dtype", "weights"])
    value = random.choice(NUMBERS)
    made = attempt(vggfast.Engine, _network(random), refusals=REFUSALS, names=[wrong], **{wrong: value})
    return made is not None


def _network(random: Random, channels: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(random.randint(1, 4)):
        layer = random.choice(["conv", "conv1", "pool", "relu", "lrn"])
        cout = random.choice(EXTENTS)
        if layer in ("conv", "conv1"):
            layers.append(
                nn.Conv2d(channels, cout, *((3, 1, 1) if layer == "conv" else (1,)), bias=random.random() < 0.7)
            )
            channels = cout
        else:
            layers.append({"pool": nn.MaxPool2d(2, 2), "relu": nn.ReLU(), "lrn": nn.LocalResponseNorm(3)}[layer])
    return nn.Sequential(*layers).eval()


def _engine_case(random: Random) -> bool:
    """An engine on images of several shapes and layouts in turn, beside the module itself."""
    torch.manual_seed(random.getrandbits(32))
    model = _network(random)
    engine = vggfast.Engine(model, threads=random.choice([None, 1, 2, 3]))
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model)
    accepted = False
    for _ in range(3):
        n, c, h, w = image_shape(random, 16)
        x = draw(random, (n, c if not convolves and random.random() < 0.5 else 3, h, w))
        odd = random.random() < 0.3
        try:
            x = random.choice(list((ODD if odd else SAME).values()))(random, x)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            continue
        with torch.no_grad():
            y = attempt(engine, x, names=["x"] if odd and not _may_be_large(x) else (), refusals=REFUSALS)
            if y is not None:
                accepted = True
                if isinstance(x, FakeTensor):  # of no elements
                    continue
                if y.numel():  # torch's modules refuse some batches of no images
                    _compare("engine", y, model.double()(x.as_subclass(Tensor).double()))
                    model.float()
            elif not odd and not _too_small(model, x):
                raise Different(f"engine: refused {tuple(x.shape)}")
    return accepted


def _may_be_large(x: Any) -> bool:
    if not isinstance(x, Tensor) or is_lazy(x) or x.is_nested:
        return False
    return x.layout is torch.strided and x.numel() > 1 << 30


def _too_small(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x.as_subclass(Tensor))
    except RuntimeError:
        return True
    return False


def _derivative_case(random: Random) -> bool:
    """The derivatives' own ops, called directly with an odd tensor."""
    odd = random.choice([0, -1, 2**40]) if random.random() < 0.1 else 0
    n, cin, cout, h, w = 2, random.choice(EXTENTS), random.choice(EXTENTS), 4, random.choice([4, 5])
    relu, pool = random.choice([(True, False), (False, True), (True, True)])
    size = (h // 2, w // 2) if pool else (h, w)
    mask = torch.randint(0, 256, (n, relu + 2 * pool, *size, (cout + 7) // 8), dtype=torch.uint8)
    gy, x, weight = draw(random, (n, cout, *size)), draw(random, (n, cin, h, w)), draw(random, (cout, cin, 3, 3))
    call, tensors = random.choice(
        [
            (
                lambda gy, mask, weight: conv_dgrad(gy, mask, weight, odd or h, w),
                {"gy": gy, "mask": mask, "weight": weight},
            ),
            (lambda x, gy, mask: conv_wgrad(x, gy, mask, 3, True)[0], {"x": x, "gy": gy, "mask": mask}),
            (lambda y, mask: mask_scatter(y, mask, odd or h, w), {"y": gy, "mask": mask}),
            (mask_gather, {"z": draw(random, (n, cout, h, w)), "mask": mask}),
            (lambda gy, x: lrn_dgrad(gy, x, 3, 1.0, 0.75, 1.0), {"gy": x, "x": x.clone()}),
            (linear_dgrad, {"gy": x[0, 0], "weight": draw(random, (w, 3))}),
            (linear_wgrad, {"x": x[0, 0], "gy": x[1, 0]}),
        ]
    )
    wrong = random.choice(list(tensors))
    tensor_kinds = [kind for kind in ODD if kind not in ("numpy", "list", "text", "number", "fake", "lazy")]  # torch's
    try:
        made = ODD[random.choice(tensor_kinds)](random, tensors[wrong])
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    return attempt(call, *(tensors | {wrong: made}).values(), refusals=REFUSALS) is not None


def _crops_case(random: Random) -> bool:
    """crop_images: pictures and options of odd kinds, and the memory that it writes to."""
    n, h, w, size = random.choice([0, 1, 2]), random.choice(EXTENTS), random.choice(EXTENTS), 1
    rng = np.random.default_rng(random.getrandbits(32))
    pictures: Any = [rng.integers(0, 256, (h, w, 3), np.uint8) for _ in range(n)]
    options: dict[str, Any] = {"mean": (1.0, 2.0, 3.0), "std": (2.0, 1.0, 0.5)}
    tensors = {"corners": torch.zeros(n, 2, dtype=torch.int32), "flips": torch.ones(n, dtype=torch.bool),
               "shifts": draw(random, (n, 3))}  # fmt: skip
    images = torch.from_numpy(np.stack(pictures)) if n else torch.zeros(0, h, w, 3).byte()
    out = torch.empty(n, 3, size, size).to(memory_format=torch.channels_last)
    odd = random.random() < 0.6
    forms = list((ODD if odd else SAME).values())
    everything = tensors | {"out": out}
    wrong = random.choice(list(everything))
    try:
        everything[wrong] = random.choice(forms)(random, everything[wrong])
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    if random.random() < 0.2:
        torchs = [torch.from_numpy(p) for p in pictures]
        pictures = random.choice([[*pictures, None], [*pictures, 3], "ab", 3, None, torchs,
                                  [p[:, ::-1] for p in pictures], [p[..., :2] for p in pictures],
                                  [p.astype(np.float32) for p in pictures], np.array(pictures)])  # fmt: skip
        return attempt(ops.crop_images, pictures, size, refusals=REFUSALS, **options, **everything) is not None
    y = attempt(ops.crop_images, pictures, size, refusals=REFUSALS, names=[wrong], **options, **everything)
    if y is None:
        return False
    out = everything.pop("out")
    if out is not None and y is not out:
        raise Different("crop_images: what came back is not out")
    _compare("crop_images", y, reference.prepare_images(images, size, dtype=torch.float64, **everything, **options))
    return True


def _binding_case(random: Random) -> bool:
    """The compiled module's functions, called with what is no argument of theirs."""
    core = _native.load()
    x = draw(random, image_shape(random)).to(memory_format=torch.channels_last)
    good: list[Any] = [_native.view(x, "x"), None, core.Context(1), 1, 2.0, True, (1.0, 2.0, 3.0), [(0, 1)]]
    wrong = [*NUMBERS, "cpu", b"x", object(), [], {}, x, core]

    def view() -> Any:
        shape = [random.choice([-1, 0, 1, 2, 2**31, 2**62]) for _ in range(random.randint(0, 5))]
        strides = [random.choice([-5, 0, 1, 2**62]) for _ in range(random.choice([len(shape), 3]))]
        dtype = random.choice(["float32", "float64", "uint8", "bfloat16", "int7", "int64"])
        return core.TensorView(x, 0, shape, strides, dtype, random.choice(["cpu", "cpu", "cuda", "mps"]))

    with contextlib.suppress(ValueError):
        good.append(view())
    engine = core.Engine(False, False, 1, 1, 8)
    owner = random.choice([core.cpu, core, engine, core.plan])
    name = random.choice([key for key in dir(owner) if not key.startswith("_") and key not in SETTINGS])
    function = getattr(owner, name)
    if not callable(function):
        return False
    args = [random.choice(good if random.random() < 0.7 else wrong) for _ in range(random.randint(0, 10))]
    return attempt(function, *args, refusals=REFUSALS) is not None


SETTINGS = ("set_cpu_isa", "set_conv_algorithm", "release_unused")  # of the process


def _transform_case(random: Random) -> bool:
    """Transforms of torch.func around engines and modules."""
    torch.manual_seed(random.getrandbits(32))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    engine, x = vggfast.Engine(model), draw(random, (2, 2, 3, 5, 5))
    call = random.choice(
        [
            lambda: vmap(engine)(x),
            lambda: grad(lambda t: engine(t).sum())(x[0]),
            lambda: torch.func.jvp(engine, (x[0],), (x[1],)),
            lambda: torch.func.jvp(ops.max_pool2x2, (x[0],), (x[1],)),
            lambda: torch.func.functionalize(engine)(x[0]),
        ]
    )
    y = attempt(call, refusals=(*REFUSALS, NotImplementedError))
    if isinstance(y, Tensor) and y.dim() == 5:
        _compare("vmap", y[0], model.double()(x[0].double()))
    return y is not None


CASES = [_same_case] * 8 + [_odd_case] * 5 + [_argument_case] * 2 + [_engine_case] * 2 + [_derivative_case] * 2 + [
    _crops_case, _crops_case, _binding_case, _binding_case, _transform_case]  # fmt: skip


def case(random: Random, folder: Path) -> bool | None:
    torch.manual_seed(random.getrandbits(32))
    return random.choice(CASES)(random)
