"""What each initialisation does in the first iterations: scales, losses, gradients, and where it breaks.

Source: Simonyan & Zisserman, section 3.1, says "variance 10^-2" of the weights; docs/initialisation.md has what came of
that and of other readings.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast._progress import Progress, StageProgress, silent
from vggfast.data import Batch, Batches, open_dataset
from vggfast.io import write_atomically
from vggfast.models import VGG
from vggfast.runs.config import TrainConfig
from vggfast.training.build import build_model, build_optimiser, named_layers, open_augmentation

# A run trains where its loss ends this far below that of guessing, ln K; as far above, it has got worse.
_MARGIN = 0.02
_DIGITS = 5  # of a figure in init.json


def diagnose(
    config: TrainConfig, inits: Sequence[str], out: str | Path, steps: int = 200,
    *, progress: StageProgress = silent, tell: Callable[[str], object] = silent,
) -> dict[str, Any]:  # fmt: skip
    """Trains `config`'s network from each initialisation for some iterations, and writes down what happens.

    All see the same batches. A run ends early once its loss or a gradient is not finite. The folder gets init.json,
    anew after each initialisation. What that already has is kept, so an interrupted call goes on where it was. On the
    CPU, in float32, with a constant learning rate.

    Args:
        config: network, data, SGD, dropout and seed; its `init`, `epochs` and `steps` are not used.
        inits: names of :data:`vggfast.initialisation.INITS`.
        out: the folder.
        steps: iterations of each.
        progress: is told by initialisation how many iterations are done.
        tell: is told which initialisations are there already.

    Returns:
        What init.json holds: "config", "steps", "classes" (K), "guess" (ln K, nats), "input" (root mean square of the
        first batch) and "runs", by name: "status"; per iteration "loss" (nats), "logits" (their deviation),
        "gradients" (by layer, L2 norm of the weights' gradient); by layer, at the first iteration, "outputs" (root
        mean square before the ReLU) and "predicted" (the same by :func:`predict_outputs`). Figures that are not finite
        are the strings "nan", "inf" and "-inf".

    Raises:
        FileExistsError: the folder's init.json is of another configuration.
        ValueError, FileNotFoundError: an argument or the data do not fit; the text says which.
    """
    out = Path(out)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not inits:
        raise ValueError("inits must have at least one name of an initialisation, got none")
    configs = [dataclasses.replace(config, init=init) for init in dict.fromkeys(inits)]  # which checks the names
    result = _earlier(out / "init.json", config, steps)
    classes, batches = _open_batches(config)
    result |= {"classes": classes, "guess": _round(math.log(classes))}
    for each in configs:
        if each.init in result["runs"]:
            tell(f"{each.init}: in {out / 'init.json'} already")
            continue
        shown = functools.partial(progress, f"init {each.init}")
        run, result["input"] = _run(each, classes, itertools.islice(_endless(batches), steps), steps, shown)
        result["runs"][each.init] = run | {"status": _status(run, result["guess"])}
        _write(result, out / "init.json")
    return result


def verdicts(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, a row of text per initialisation) of what `diagnose` returned."""
    columns = ("init", "logits at start", "loss at start", "loss at end", "status")
    rows: list[tuple[str, ...]] = [
        (name, f"{float(run['logits'][0]):.3g}", f"{float(run['loss'][0]):.4g}", f"{_end(run):.4g}", run["status"])
        for name, run in result["runs"].items()
    ]
    return columns, rows


def predict_outputs(model: VGG, rms: float) -> dict[str, float]:
    """Root mean square of each layer's outputs, before the ReLU, by the deviation of its weights alone.

    A layer multiplies by std * sqrt(fan_in), and by sqrt(1/2) where a ReLU comes before it. What pools and dropout
    add, and what the zeros around a map take away, is left out. Zero biases and no batch norm.

    Args:
        model: a network with its first weights.
        rms: root mean square of the network's input.

    Source: He et al., 2015, section 2.2.
    """
    outputs = {}
    for i, (name, layer) in enumerate(named_layers(model).items()):
        fan_in = layer.weight[0].numel()
        rms *= layer.weight.detach().std().item() * math.sqrt(fan_in / 2 if i else fan_in)
        outputs[name] = rms
    return outputs


# ---- one initialisation -------------------------------------------------------------------------------------------


def _open_batches(config: TrainConfig) -> tuple[int, Batches]:
    """(classes, training batches)."""
    images = open_dataset(config.data, "train")
    first = open_augmentation(config, images).at(config.crop_at(0))
    batches = Batches(
        images, first, config.batch_size, shuffle=True, seed=config.seed,
        workers=config.workers, on_bad_image=config.on_bad_image, keep_last=False,
    )  # fmt: skip
    return len(images.classes), batches


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


def _run(
    config: TrainConfig, classes: int, batches: Iterator[Batch], steps: int, progress: Progress
) -> tuple[dict[str, Any], Any]:
    """(what happened, root mean square of the first batch)."""
    model = build_model(config, classes).train()
    optimiser = build_optimiser(config, model)
    layers = named_layers(model)
    run: dict[str, Any] = {"loss": [], "logits": [], "gradients": {name: [] for name in layers}}
    rms = math.nan
    progress(0, steps)
    for step, batch in enumerate(batches):
        images, labels = batch.images, batch.labels
        outputs: dict[str, float] = {}
        if step == 0:
            rms = _rms(images)
            run["predicted"] = {name: _round(value) for name, value in predict_outputs(model, rms).items()}
        random = torch.get_rng_state()
        with _watched(layers if step == 0 else {}, outputs):
            logits = model(images)
        loss = F.cross_entropy(logits, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norms = {name: layer.weight.grad.norm().item() for name, layer in layers.items()}
        if step == 0:
            run["outputs"] = {name: _round(value) for name, value in outputs.items()}
        run["loss"].append(_round(loss.item()))
        run["logits"].append(_round(logits.std().item()))
        for name, norm in norms.items():
            run["gradients"][name].append(_round(norm))
        progress(step + 1, steps, f"loss {loss.item():.4g}  logits {logits.std().item():.3g}")
        if not (math.isfinite(loss.item()) and all(map(math.isfinite, norms.values()))):
            torch.set_rng_state(random)
            run["broken"] = {"step": step, "where": _where(model, layers, images, loss.item(), norms)}
            break
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
    return run, _round(rms)


def _where(model: VGG, layers: dict[str, Any], images: Tensor, loss: float, norms: dict[str, float]) -> str:
    """What is first not finite: a layer's weights or outputs on the way forward, the loss, or a gradient."""
    if not math.isfinite(loss):
        outputs: dict[str, float] = {}
        with torch.no_grad(), _watched(layers, outputs):
            model(images)
        for name, layer in layers.items():
            if not bool(layer.weight.isfinite().all()):
                return f"weights of {name}"
            if not math.isfinite(outputs[name]):
                return f"outputs of {name}"
        return "loss of finite logits"
    return "gradient of " + next(name for name in reversed(norms) if not math.isfinite(norms[name]))


@contextmanager
def _watched(layers: dict[str, Any], outputs: dict[str, float]) -> Iterator[None]:
    """Puts the root mean square of each layer's outputs into `outputs`. A hook un-fuses its layer meanwhile."""

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = _rms(output.detach())

        return note

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rms(values: Tensor) -> float:
    """Root mean square; in float64, since squares of large float32 overflow."""
    return values.double().square().mean().sqrt().item()


# ---- what is written ----------------------------------------------------------------------------------------------


def _round(value: float) -> float | str:
    """For JSON, which has no number that is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)


def _end(run: dict[str, Any]) -> float:
    """The loss at the end: the mean of the last tenth; of a run that broke, the last one."""
    losses = [float(value) for value in run["loss"]]
    return losses[-1] if "broken" in run else float(np.mean(losses[-max(1, len(losses) // 10) :]))


def _status(run: dict[str, Any], guess: float) -> str:
    if "broken" in run:
        return f"diverged at step {run['broken']['step']}: {run['broken']['where']}"
    ratio = _end(run) / guess
    if ratio < 1 - _MARGIN:
        return "trains"
    return "still at ln K" if ratio <= 1 + _MARGIN else "worse than guessing"


def _metadata(config: TrainConfig) -> dict[str, Any]:
    """What decides the figures: the configuration less what each run chooses and what `diagnose` does not read."""
    read = (
        "data", "crop", "scale_min", "scale_max", "flip", "colour_shift", "pixel_std", "on_bad_image", "config",
        "width", "hidden", "batch_norm", "dropout", "init_from", "init_layers", "batch_size", "optimiser", "lr",
        "momentum", "weight_decay", "decay_all", "clip_norm", "seed",
    )  # fmt: skip
    return {name: getattr(config, name) for name in read}


def _earlier(path: Path, config: TrainConfig, steps: int) -> dict[str, Any]:
    """What an earlier call wrote there, or the start of a new result.

    Raises:
        FileExistsError, ValueError: it is of another configuration, or not to be read; the text names the file.
    """
    metadata = _metadata(config)
    if not path.exists():
        return {"config": metadata, "steps": steps, "runs": {}}
    try:
        result = json.loads(path.read_text())
        found = {"steps": result["steps"], **result["config"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file that --diagnose-init wrote: {error!r}") from error
    expected = {"steps": steps, **metadata}
    if different := [name for name in expected if found.get(name) != expected[name]]:
        raise FileExistsError(
            f"{path} is of other runs ("
            + ", ".join(f"{name} is {found.get(name)!r} there and {expected[name]!r} here" for name in different)
            + "): choose another folder"
        )
    return result


def _write(result: dict[str, Any], path: Path) -> None:
    text = json.dumps(result) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
