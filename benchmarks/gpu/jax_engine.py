"""JAX, compiled by XLA: the forward pass and the training step, NHWC."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from jax import lax
from peers.face import Runner
from peers.network import Layer, Spec, images, labels, layers, weights
from peers.training import DROPOUT, RATE

from gpu import choice
from gpu.steps import CHECKED_IMAGES

NHWC = ("NHWC", "HWIO", "NHWC")
MOMENTUM, DECAY = 0.9, 5e-4


def jax_dtype(dtype: str) -> Any:
    return {"bf16": jnp.bfloat16, "fp16": jnp.float16, "tf32": jnp.float32, "fp32": jnp.float32}[dtype]


def unavailable() -> str:
    """Why JAX cannot compute where the benchmark does; empty where it can."""
    platform = jax.default_backend()
    return f"JAX sees no GPU, but {platform}" if choice.DEVICE == "cuda" and platform != "gpu" else ""


def precision(dtype: str) -> lax.Precision:
    """Of float32 products: TF32 or not."""
    return lax.Precision.HIGHEST if dtype == "fp32" else lax.Precision.DEFAULT


def conv(x: Any, weight: Any, dtype: str, pad: int = 1) -> Any:
    return lax.conv_general_dilated(
        x, weight, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=NHWC, precision=precision(dtype)
    )


def max_pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _parameters(spec: Spec, cache: Path) -> dict[str, Any]:
    """The common weights, those of convolutions as HWIO, of linear layers as (inputs, outputs)."""
    found = {}
    for name, array in weights(spec, cache):
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        found[name] = jnp.asarray(array.T if array.ndim == 2 else array, jax_dtype(spec.dtype))
    return found


def _forward(parameters: Any, x: Any, key: Any, plan: tuple[Layer, ...], dtype: str) -> Any:
    """Dropout where there is a key."""
    for layer in plan:
        if layer.kind == "pool":
            x = max_pool(x)
            continue
        weight, bias = parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]
        if layer.kind == "conv":
            x = conv(x, weight, dtype, layer.kernel // 2) + bias
        else:
            if x.ndim == 4:
                x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
            x = jnp.matmul(x, weight, precision=precision(dtype)) + bias
        if layer.relu:
            x = jnp.maximum(x, 0)
        if layer.kind == "fc" and layer.relu and key is not None:
            key, own = jax.random.split(key)
            x = jnp.where(jax.random.bernoulli(own, 1 - DROPOUT, x.shape), x / (1 - DROPOUT), jnp.zeros_like(x))
    return x


def _loss(parameters: Any, x: Any, expected: Any, key: Any, plan: tuple[Layer, ...], dtype: str, few: int) -> Any:
    scores = jax.nn.log_softmax(_forward(parameters, x, key, plan, dtype)[:few])
    return -jnp.take_along_axis(scores, expected[:few, None], axis=1).mean()


def _step(
    parameters: Any, momentum: Any, x: Any, expected: Any, key: Any, plan: tuple[Layer, ...], dtype: str
) -> tuple[Any, Any, Any]:
    key, own = jax.random.split(key)
    gradient = jax.grad(_loss)(parameters, x, expected, own, plan, dtype, x.shape[0])
    momentum = jax.tree.map(lambda m, g, p: MOMENTUM * m + g + DECAY * p, momentum, gradient, parameters)
    return jax.tree.map(lambda p, m: p - RATE * m, parameters, momentum), momentum, key


def _as_torch_has_it(gradient: Any) -> np.ndarray:
    array = np.asarray(gradient.astype(jnp.float32))
    return (array.transpose(3, 2, 0, 1) if array.ndim == 4 else array).reshape(-1)


def build(spec: Spec, cache: Path, training: bool = False) -> Runner:
    """Args: `training` takes the step, else the forward pass."""
    if why := unavailable():
        raise RuntimeError(why)
    plan, parameters = tuple(layers(spec)), _parameters(spec, cache)
    clock = partial(timing.by_host, flush=timing.flusher())

    def prepare(x: np.ndarray) -> Any:
        return jnp.asarray(x.transpose(0, 2, 3, 1), jax_dtype(spec.dtype))

    if training:
        return _trainer(spec, plan, parameters, prepare, clock)
    forward = jax.jit(partial(_forward, plan=plan, dtype=spec.dtype))

    def result(y: Any) -> np.ndarray:
        array = np.asarray(y.astype(jnp.float32))
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array

    return Runner(prepare, lambda x: forward(parameters, x, None).block_until_ready(), result, samples=clock)


def _trainer(spec: Spec, plan: tuple[Layer, ...], parameters: Any, prepare: Any, clock: Any) -> Runner:
    expected = jnp.asarray(labels(Spec(**{**spec.as_dict(), "batch": max(spec.batch, CHECKED_IMAGES)})))
    step = jax.jit(partial(_step, plan=plan, dtype=spec.dtype), donate_argnums=(0, 1))
    state: list[Any] = [parameters, jax.tree.map(jnp.zeros_like, parameters), jax.random.key(0)]

    def run(x: Any) -> Any:
        state[:] = step(*state[:2], x, expected[: spec.batch], state[2])
        jax.block_until_ready(state)

    def check() -> np.ndarray:
        gradient = jax.jit(jax.grad(partial(_loss, key=None, plan=plan, dtype=spec.dtype, few=CHECKED_IMAGES)))
        found = gradient(state[0], prepare(images(spec)), expected)
        names = [f"{layer.name}.{what}" for layer in plan if layer.kind == "conv" for what in ("weight", "bias")]
        return np.concatenate([_as_torch_has_it(found[name]) for name in names])

    return Runner(prepare, run, lambda y: np.zeros(0), check, clock)
