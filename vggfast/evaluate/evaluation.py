"""Networks on a data set: posteriors, errors with intervals, fusion; as a table, JSON, CSV, and a folder of them."""

from __future__ import annotations

import csv
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggfast._deprecated import renamed_attributes
from vggfast._progress import Progress, StageProgress, silent
from vggfast.data import Images, ImageSet
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.evaluate.dataset import CHUNK, Settings, evaluate_set
from vggfast.evaluate.folder import Folder
from vggfast.evaluate.fusion import average, vote
from vggfast.evaluate.metrics import errors, interval, with_accuracies
from vggfast.evaluate.networks import Network, trained_on
from vggfast.io import shown, write_atomically

FUSIONS = ("average", "vote")


class Order(NamedTuple):
    """What is asked for.

    Attributes:
        data, split: what the images are, as ``vggfast eval`` takes them.
        scales: of each network.
        settings: of all.
    """

    data: str
    split: str
    scales: list[tuple[int, ...]]
    settings: Settings


@renamed_attributes(
    top1="top1_error", top1_interval="top1_error_interval", top5="top5_error", top5_interval="top5_error_interval"
)
@dataclass(frozen=True)
class Row:
    """A line of the table: one network, or a fusion of all.

    Attributes:
        name: the network's file, or "average" or "vote".
        images: that decode; the errors are of these.
        top1_error, top5_error: in per cent; top5_error is None of a vote.
        top1_error_interval, top5_error_interval: 95 %.
        images_per_s: None of a fusion.
    """

    name: str
    images: int
    top1_error: float
    top1_error_interval: tuple[float, float]
    top5_error: float | None
    top5_error_interval: tuple[float, float] | None
    images_per_s: float | None = None


@dataclass
class Predictions:
    """What networks say of images.

    Attributes:
        posteriors: (N, classes) float32 of each network; NaN where an image does not decode.
    """

    networks: Sequence[Network]
    images: Images
    posteriors: list[Tensor]

    @property
    def _seen(self) -> Tensor:
        return ~self.posteriors[0].isnan().any(1)

    @property
    def _labels(self) -> list[int]:
        """The class of each image, where that is known."""
        return []

    def final(self, fusion: str) -> tuple[Tensor, Tensor]:
        """(final class, its confidence) of each image, by all networks; of no use where the image does not decode."""
        if len(self.posteriors) == 1 or fusion == "average":
            confidences, labels = average(self.posteriors).max(1)
            return labels, confidences
        return vote(self.posteriors)

    def predictions(self, fusion: str) -> Iterator[list[str]]:
        """The lines of predictions.csv, the header first."""
        names, labels = self.images.classes, self._labels
        true = ["class"] if labels else []
        yield ["image", *true, *(str(network.path) for network in self.networks), "prediction", "confidence"]
        by_net = [each.argmax(1).tolist() for each in self.posteriors]
        finals, confidences = (each.tolist() for each in self.final(fusion))
        for i, seen in enumerate(self._seen.tolist()):
            found = [*(names[own[i]] for own in by_net), names[finals[i]], f"{confidences[i]:.6f}"]
            label = [names[labels[i]]] if labels else []
            yield [self.images.source(i), *label, *(found if seen else [""] * len(found))]

    def write_csv(self, path: Path, fusion: str) -> None:
        """Writes a file with the rows of :meth:`predictions`.

        Raises:
            OSError: it could not be written.
        """

        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([*map(shown, row)] for row in self.predictions(fusion))

        write_atomically(path, write)


@dataclass
class Evaluation(Predictions):
    """What networks say of a data set, and how often it is wrong.

    Attributes:
        images: with their labels.
        order: what was asked for.
        seconds: that each network took.
        environment: what it was computed with.
    """

    images: ImageSet
    order: Order
    seconds: list[float]
    environment: dict[str, str]

    @property
    def _labels(self) -> list[int]:
        return self.images.labels.tolist()

    def rows(self) -> list[Row]:
        """A row a network; with several, their average's and their vote's."""
        seen, labels = self._seen, torch.from_numpy(self.images.labels)
        if not seen.any():
            raise ValueError(f"{self.images.name}: none of its {len(self.images)} images decodes")
        labels = labels[seen]
        kept = [each[seen] for each in self.posteriors]
        rows = [
            row_of(str(network.path), values, labels, len(self.images) / seconds)
            for network, values, seconds in zip(self.networks, kept, self.seconds, strict=True)
        ]
        return rows + fused_rows(kept, labels)

    def content(self, fusion: str) -> dict[str, Any]:
        """What results.json holds."""
        order = self.order
        common = order.scales[0] if len(set(order.scales)) == 1 else None
        return {
            "data": order.data, "split": order.split, "images": len(self.images),
            "bad_images": len(self.images) - int(self._seen.sum()), "classes": self.images.classes,
            "protocol": order.settings.protocol, "scales": None if common is None else list(common),
            "flip": order.settings.flip, "pool": order.settings.pool, "fusion": fusion,
            "models": [
                {"path": str(each.path), "config": each.arguments["config"], "arguments": each.arguments,
                 "sha256": each.sha256, "trained_on": trained_on(each.metadata), "scales": list(scales),
                 "seconds": seconds}
                for each, scales, seconds in zip(self.networks, order.scales, self.seconds, strict=True)
            ],
            "rows": [with_accuracies(asdict(row)) for row in self.rows()],
            "environment": self.environment,
        }  # fmt: skip

    def table(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
        """(title, columns, rows), in words."""
        settings, count = self.order.settings, len(self.images)
        views = "image and mirror image" if settings.flip else "no mirror image"
        pool = ", scores summed" if settings.pool == "sum" else ""
        scales = [" ".join(map(str, each)) for each in self.order.scales] + ["", ""]
        return (
            f"{self.order.data} ({self.order.split}, {count} images), {settings.protocol}, {views}{pool}",
            ("network", "scales Q", "top-1 error % (95 %)", "top-5 error % (95 %)", "images/s"),
            [
                (row.name, own, _cell(row.top1_error, row.top1_error_interval),
                 _cell(row.top5_error, row.top5_error_interval),
                 "" if row.images_per_s is None else f"{row.images_per_s:.1f}")
                for row, own in zip(self.rows(), scales, strict=False)
            ],
        )  # fmt: skip


def row_of(name: str, posteriors: Tensor, labels: Tensor, images_per_s: float | None = None) -> Row:
    """The errors of posteriors (N, classes) against labels (N,)."""
    found = errors(posteriors, labels)
    top1, top5, n = found["top1_error"], found["top5_error"], len(labels)
    return Row(name, n, top1, interval(top1, n), top5, interval(top5, n), images_per_s)


def fused_rows(posteriors: Sequence[Tensor], labels: Tensor) -> list[Row]:
    """The errors of several networks' average and vote; none of a single one's."""
    if len(posteriors) < 2:
        return []
    wrong = 100 * (vote(posteriors)[0] != labels).double().mean().item()
    by_vote = Row("vote", len(labels), wrong, interval(wrong, len(labels)), None, None)
    return [row_of("average", average(posteriors), labels), by_vote]


def _cell(error: float | None, bounds: tuple[float, float] | None) -> str:
    if error is None or bounds is None:
        return ""
    return f"{error:.2f} ({bounds[0]:.1f}-{bounds[1]:.1f})\naccuracy {100 - error:.2f} %"


def evaluate_networks(
    order: Order, networks: Sequence[Network], images: ImageSet, context: DistributedContext, out: Path | None = None,
    *, overwrite: bool = False, fusion: str = "average", progress: StageProgress = silent,
    warn: Callable[[str], object] = silent,
) -> Evaluation | None:  # fmt: skip
    """Evaluates networks on a data set, on all ranks; what came out on rank 0, None on the others.

    Args:
        order: what is asked for.
        networks: whose classes are those of the images.
        images: of the order's data and split; numbers that name classes may be in another order.
        out: a folder for all results, and from which an evaluation goes on that was stopped.
        overwrite: replace another evaluation in the folder.
        fusion: what predictions.csv there takes for final, "average" or "vote".
        progress: on rank 0, is told by network how many images are done.
        warn: on rank 0, is told of each image that does not decode, where that is allowed.

    Raises:
        FileExistsError: the folder holds an evaluation with other settings.
        ValueError: classes, scales or fusion do not fit, or an image does not decode; the text names it.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(map(repr, FUSIONS))}, got {fusion!r}")
    for network, scales in zip(networks, order.scales, strict=True):
        images = images.ordered(network.classes or images.classes)
        network.check_classes(images.classes, order.data)
        network.check_scales(scales)
    folder = _folder(order, networks, images, out, overwrite) if context.main and out else None
    there = context.of_main(folder.results() if folder else None)
    if there:
        if folder is None:
            return None
        posteriors = [torch.from_numpy(folder.posteriors(k)) for k in range(len(networks))]
        seconds, metadata = [each["seconds"] for each in there["models"]], there["environment"]
    else:
        posteriors, seconds = _compute(networks, order.scales, order.settings, images, context, folder, progress, warn)
        metadata = environment(context.size, context.device)
    if not context.main:
        return None
    done = Evaluation(networks, images, posteriors, order, seconds, metadata)
    if folder:
        for k, values in enumerate(posteriors if not there else ()):
            folder.save(f"posteriors-{k}.npy", values.numpy())
        folder.save("labels.npy", images.labels)
        folder.finish(done.content(fusion))
        try:
            done.write_csv(folder.path / "predictions.csv", fusion)
        except OSError as error:
            warnings.warn(" ".join(str(error).split()), stacklevel=1)
    return done


def predict_networks(
    networks: Sequence[Network], scales: Sequence[tuple[int, ...]], settings: Settings, images: Images,
    context: DistributedContext, *, progress: StageProgress = silent, warn: Callable[[str], object] = silent,
) -> Predictions | None:  # fmt: skip
    """What networks say of images, on all ranks; on rank 0, None on the others.

    Args:
        networks: whose classes are those of the images.
        scales: of each network.
        settings: of all.
        images: whose labels, if they have any, are not looked at.
        progress, warn: see :func:`evaluate_networks`.

    Raises:
        ValueError: classes or scales do not fit, or an image does not decode; the text names it.
    """
    for network, own in zip(networks, scales, strict=True):
        network.check_classes(images.classes, images.name)
        network.check_scales(own)
    posteriors, _ = _compute(networks, scales, settings, images, context, None, progress, warn)
    return Predictions(networks, images, posteriors) if context.main else None


def _compute(
    networks: Sequence[Network], scales: Sequence[tuple[int, ...]], settings: Settings, images: Images,
    context: DistributedContext, folder: Folder | None, progress: StageProgress, warn: Callable[[str], object],
) -> tuple[list[Tensor], list[float]]:  # fmt: skip
    """(posteriors, seconds) of each network, one network at a time."""

    def compute(k: int) -> tuple[Tensor, float]:
        model, chunks = networks[k].load().to(context.device), folder.chunks(k) if folder else None
        shown: Progress = functools.partial(progress, str(networks[k].path)) if context.main else silent
        return evaluate_set(model, images, scales[k], settings, context, chunks=chunks, progress=shown, warn=warn)

    made = [compute(k) for k in range(len(networks))]
    return [posteriors for posteriors, _ in made], [seconds for _, seconds in made]


def _folder(order: Order, networks: Sequence[Network], images: ImageSet, out: Path, overwrite: bool) -> Folder:
    settings: dict[str, Any] = {
        "data": order.data, "split": order.split, "images": images.digest()[:16],
        "classes": hashlib.sha256("\n".join(images.classes).encode()).hexdigest()[:16], "chunk": CHUNK,
    }  # fmt: skip
    names: dict[str, str] = {}
    for k, (network, scales) in enumerate(zip(networks, order.scales, strict=True), 1):
        settings |= {f"network {k}": network.sha256[:16], f"scales {k}": " ".join(map(str, scales))}
        names |= {f"network {k}": f"network {k} ({network.path})", f"scales {k}": f"scales of {network.path}"}
    for name in ("protocol", "flip", "pool", "on_bad_image"):
        settings[name] = getattr(order.settings, name)
    return Folder(out, settings, names, overwrite)
