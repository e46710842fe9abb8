"""A replication's table on Tiny-ImageNet beside ours, and the cells of appendix A on the same images.

The networks are found by what their files hold, not by their names. The replication trained the five networks on 200
images a class, and answers by their vote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggfast._progress import StageProgress, silent
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.evaluate.evaluation import fused_rows, row_of
from vggfast.evaluate.networks import Network
from vggfast.io import shown
from vggfast.localisation import open_boxes
from vggfast.reproduce.appendices import box_errors
from vggfast.reproduce.classification import Bench
from vggfast.reproduce.tables import Figure, Line, Result
from vggfast.runs.config import TrainConfig
from vggfast.runs.log import read_csv
from vggfast.weights import load_model

# Top-1 accuracy on the validation images in per cent, by configuration.
ACCURACY = {"A": 35.9, "B": 40.0, "C": 38.5, "D": 36.9, "E": 35.6}
PROTOCOLS = ("single", "dense", "multi-crop", "both")
# (what the last layer gives, layers that were trained): the paper's error in per cent on ImageNet, where it has one.
CELLS = {("box", "all"): None, ("box", "fc"): 36.4, ("boxes", "all"): 33.1, ("boxes", "fc"): 34.3}
_IN_WORDS = {"box": "one for all", "boxes": "one a class", "all": "all", "fc": "FC alone"}


class Found(NamedTuple):
    """A weight file, and the run that wrote it where its folder is there.

    Attributes:
        path: the file.
        config: of the run.
        epochs: that the run has trained; None where there is no log.
    """

    path: Path
    config: TrainConfig | None
    epochs: int | None

    @property
    def length(self) -> str:
        """Epochs done, of those asked for, in words."""
        if self.epochs is None:
            return "?"
        planned = self.config.epochs if self.config else self.epochs
        return f"{self.epochs}" if self.epochs >= planned else f"{self.epochs} of {planned}"

    @property
    def title(self) -> str:
        """The name under which it was put there: the file's, or its run's folder."""
        return self.path.parent.name if self.path.name == "model.safetensors" else self.path.stem


def find_networks(folder: Path) -> list[Found]:
    """The weight files of a folder and of the runs' folders in it, by name.

    Raises:
        ValueError, TypeError: the log or the recipe of a run cannot be read; the text names it.
    """
    paths = sorted([*folder.glob("*.safetensors"), *folder.glob("*/model.safetensors")])
    return [_found(path) for path in paths]


def _found(path: Path) -> Found:
    if path.name != "model.safetensors":
        return Found(path, None, None)
    recipe, rows = path.parent / "config.yaml", read_csv(path.parent / "metrics.csv")
    return Found(
        path, TrainConfig.read(recipe) if recipe.is_file() else None, len({row["epoch"] for row in rows}) or None
    )


class Collection(Bench):
    """The bench of the networks in a folder: its names are configurations."""

    def find(self) -> list[str]:
        """Looks at all files; what has to be said of some of them."""
        self.found: dict[str, Found] = {}
        self._why: dict[str, str] = {}
        notes = []
        for each in find_networks(self.weights):
            try:
                network = Network.open(each.path, self._classes)
                network.check_classes(self.images.classes, self.data)
            except ValueError as error:
                notes.append(f"left out: {shown(error)}")
                continue
            config = network.arguments["config"]
            named = re.split(r"[-_.]", each.title.upper())[0]
            if named in ACCURACY and not each.title.upper().startswith(config):
                notes.append(f"{each.path} is called {named} and holds {config}.")
            if config not in ACCURACY:
                notes.append(f"left out: {each.path} holds {config}, which the replication has not.")
            elif config in self.found:
                self._why[config] = f"two networks of {config} are there, {self.found[config].path} and {each.path}"
            else:
                self.found[config], self._networks[config] = each, network
        for config, why in self._why.items():
            self._networks[config] = why
        return notes

    def network(self, name: str) -> Network | str:
        return self._networks.get(name, f"no network of configuration {name} is in {self.weights}")

    def scales(self, name: str, protocol: str) -> tuple[int, ...]:
        network = self._networks[name]
        assert isinstance(network, Network)
        return network.scales(protocol)


def run_classification(bench: Collection) -> Result:
    """Accuracies of the five networks, alone and together; on ranks but the first, its figures mean nothing.

    The networks together are those that are there; the table says which.
    """
    notes = bench.find()
    lines = [line for config in ACCURACY for line in _lines(bench, config)]
    there = [config for config in ACCURACY if isinstance(bench.network(config), Network)]
    lines += [line for protocol in PROTOCOLS for line in _fused(bench, there, protocol)]
    notes += [
        "The replication has one accuracy a network, which stands in each of its rows, and none of its vote. It "
        "trained on 200 images a class, to a training accuracy of 48 to 51 %.",
        "Intervals are of 95 % and of the images alone: another seed of training would differ too.",
    ]
    if bench.bad_images():
        notes.append(f"{bench.bad_images()} images do not decode, and count in no error.")
    trained = f"networks trained on {', '.join(sorted(bench.trained_on()))}" if there else "no network of it is there"
    return Result(
        "tiny-imagenet", f"five networks on {bench.data} ({bench.split}, {len(bench.images)} images); {trained}",
        ("network", "epochs", "protocol", "Q"), ("top-1 accuracy %",), lines, notes,
        {"data": bench.data, "split": bench.split, "images": len(bench.images),
         "trained_on": sorted(bench.trained_on()), "files": {name: str(bench.found[name].path) for name in there},
         "environment": environment(bench.context.size, bench.context.device)},
        "replication",
    )  # fmt: skip


def _lines(bench: Collection, config: str) -> list[Line]:
    network = bench.network(config)
    if isinstance(network, str):
        return [Line((config, "", "", ""), (Figure(ACCURACY[config]),), network)]
    lines = []
    for protocol in PROTOCOLS:
        scales = " ".join(map(str, bench.scales(config, protocol)))
        figure = _accuracies(bench, [config], protocol, ACCURACY[config])[:1] or [Figure(ACCURACY[config])]
        lines.append(Line((config, bench.found[config].length, protocol, scales), tuple(figure)))
    return lines


def _fused(bench: Collection, there: Sequence[str], protocol: str) -> list[Line]:
    names = ("average", "vote")
    if len(there) < 2:
        why = f"two networks or more are needed, and {len(there)} is there"
        return [Line((name, "", protocol, ""), (Figure(None),), why) for name in names]
    figures = _accuracies(bench, there, protocol, None) or [Figure(None)] * 2
    return [
        Line((f"{name} of {' '.join(there)}", "", protocol, ""), (figure,))
        for name, figure in zip(names, figures, strict=True)
    ]


def _accuracies(bench: Collection, configs: Sequence[str], protocol: str, replication: float | None) -> list[Figure]:
    """A single network's, or average's and vote's of several; on ranks but the first, which take part, none."""
    posteriors: list[Tensor] = [bench.posteriors(config, protocol) for config in configs]
    if not bench.context.main:
        return []
    seen = ~posteriors[0].isnan().any(1)
    if not seen.any():
        raise ValueError(f"{bench.images.name}: none of its {len(bench.images)} images decodes")
    kept, labels = [each[seen] for each in posteriors], torch.from_numpy(bench.images.labels)[seen]
    rows = fused_rows(kept, labels) if len(kept) > 1 else [row_of("", kept[0], labels)]
    return [
        Figure(replication, 100 - row.top1_error, (100 - row.top1_error_interval[1], 100 - row.top1_error_interval[0]))
        for row in rows
    ]


# ---- boxes -----------------------------------------------------------------------------------------------------------


def run_boxes(
    weights: Path, data: str, split: str, context: DistributedContext, progress: StageProgress = silent
) -> Result:
    """Errors of the true class's box from the centre crop: a box for all or a box a class, all layers or FC alone.

    What a network predicts is read in its file, which layers were trained in its run's config.yaml.

    Args:
        weights: holds weight files, and folders of runs.
        data, split: images with boxes, as :func:`vggfast.localisation.open_boxes` takes them.
        progress: is told by network how many images are done.
    """
    images = open_boxes(data, split)
    notes: list[str] = []
    cells: dict[tuple[str, str], list[tuple[Found, Any]]] = {cell: [] for cell in CELLS}
    for each in find_networks(weights):
        model, metadata = load_model(each.path)
        if "predict" not in metadata:
            notes.append(f"left out: {each.path} predicts classes, not boxes.")
        elif each.config is None:
            notes.append(f"left out: {each.path} has no config.yaml beside it, which would say what was trained.")
        else:
            cells[metadata["predict"], each.config.train_layers].append((each, (model, metadata)))
    lines = []
    for (predict, trained), there in cells.items():
        figure, words = Figure(CELLS[predict, trained]), (_IN_WORDS[predict], _IN_WORDS[trained])
        if len(there) != 1:
            paths = " and ".join(str(each.path) for each, _ in there)
            lines.append(Line(("", "", *words, "", ""), (figure,), f"two networks: {paths}" if paths else "no network"))
            continue
        ((each, (model, metadata)),) = there
        found = box_errors(each.path, model, metadata, images, context, progress)
        mean, own = found.true_class_mean_box, found.true_class
        lines.append(
            Line(
                (model.arguments["config"], each.length, *words, f"{mean.percent:.1f}" if mean else "",
                 _verdict(own.interval(), mean.percent) if mean else "?"),
                (Figure(figure.paper, own.percent, own.interval()),),
            )
        )  # fmt: skip
    return Result(
        "tiny-imagenet-boxes",
        f"appendix A on {data} ({split}, {len(images)} images): box of the true class, centre crop",
        ("network", "epochs", "boxes", "trained", "mean box's error %", "beats it"), ("error at IoU 0.5 %",), lines,
        [*notes, "The paper's column is of its network D on ImageNet's images."],
        {"data": data, "split": split, "images": len(images), "environment": environment(1, context.device)},
    )  # fmt: skip


def _verdict(interval: tuple[float, float], mean: float) -> str:
    if interval[0] <= mean <= interval[1]:
        return "within the interval"
    return "yes" if interval[1] < mean else "no"
