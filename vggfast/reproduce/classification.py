"""Tables 3 to 6: errors of single networks and of several together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vggfast._progress import StageProgress, silent
from vggfast.data import ImageSet
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.evaluate.dataset import Settings
from vggfast.evaluate.evaluation import Order, Row, evaluate_networks, row_of
from vggfast.evaluate.fusion import average
from vggfast.evaluate.networks import PAPER_POOL_SIZE, Network, paper_scales, trained_on
from vggfast.reproduce import paper
from vggfast.reproduce.tables import Figure, Line, Result


class Bench:
    """The networks of a folder on a data set; each is evaluated once by a protocol, and with `out` once for all tables.

    Args:
        weights: holds <configuration>-<regime>.safetensors.
        data, split: what `images` are.
        settings: but for their protocol.
        context: the ranks that share the images.
        out: the posteriors go into its folder `posteriors`, a folder of ``vggfast eval`` for each network and protocol.
        overwrite: replace what does not fit there.
        classes: names of the classes, for networks without.
        progress, warn: see :func:`vggfast.evaluate.evaluate_networks`.
    """

    def __init__(
        self, weights: Path, data: str, split: str, images: ImageSet, settings: Settings, context: DistributedContext,
        out: Path | None = None, overwrite: bool = False, classes: list[str] | None = None,
        *, progress: StageProgress = silent, warn: Callable[[str], object] = silent,
    ) -> None:  # fmt: skip
        self.weights, self.data, self.split, self.images = weights, data, split, images
        self.settings, self.context, self.out, self.overwrite = settings, context, out, overwrite
        self._classes, self._progress, self._warn = classes, progress, warn
        self._networks: dict[str, Network | str] = {}
        self._posteriors: dict[tuple[str, str], Tensor] = {}

    def network(self, name: str) -> Network | str:
        """The network of this name, or why there is none."""
        if name not in self._networks:
            path = self.weights / f"{name}.safetensors"
            try:
                found = Network.open(path, self._classes)
                found.check_classes(self.images.classes, self.data)
                self._networks[name] = found
            except FileNotFoundError:
                self._networks[name] = f"no {path.name}"
            except ValueError as error:
                self._networks[name] = str(error)
        return self._networks[name]

    def trained_on(self) -> set[str]:
        """The data that the networks were trained on, as far as their files say it."""
        return {trained_on(network.metadata) for network in self._networks.values() if isinstance(network, Network)}

    def bad_images(self) -> int:
        """How many images do not decode; 0 before anything was evaluated."""
        return int(next(iter(self._posteriors.values()), torch.zeros(0, 1)).isnan().any(1).sum())

    def scales(self, name: str, protocol: str) -> tuple[int, ...]:
        """The paper's for a network of the paper's size; else its own file's, or the paper's as much smaller."""
        network = self._networks[name]
        assert isinstance(network, Network)
        pool_size, requested = network.arguments["pool_size"], paper.test_scales(name.rpartition("-")[2], protocol)
        if pool_size != PAPER_POOL_SIZE and "scales" in network.metadata:
            return network.scales(protocol)
        return paper_scales(pool_size, requested)

    def posteriors(self, name: str, protocol: str) -> Tensor:
        """(N, classes) of a network that is there; on ranks but the first, nothing is in it."""
        if (name, protocol) not in self._posteriors:
            self._posteriors[name, protocol] = self._evaluate(name, protocol)
        return self._posteriors[name, protocol]

    def _evaluate(self, name: str, protocol: str) -> Tensor:
        if protocol == "both":
            return average([self.posteriors(name, each) for each in ("dense", "multi-crop")])
        network, scales = self._networks[name], self.scales(name, protocol)
        assert isinstance(network, Network)
        settings = Settings(protocol, self.settings.flip, "mean", self.settings.memory, self.settings.on_bad_image)
        order = Order(self.data, self.split, [scales], settings)
        out = None
        if self.out:
            out = self.out / "posteriors" / "-".join([name, protocol, *map(str, scales)])
        done = evaluate_networks(
            order, [network], self.images, self.context, out, overwrite=self.overwrite,
            progress=self._progress, warn=self._warn,
        )  # fmt: skip
        return torch.zeros(0, len(self.images.classes)) if done is None else done.posteriors[0]


def run_table(bench: Bench, name: str) -> Result:
    """Table "table3", ... or "table6"; on ranks but the first, its figures mean nothing."""
    table = paper.TABLES[name]
    lines = [_line(bench, cell) for cell in table.cells]
    ran = bench.trained_on()
    if ran == set():
        trained = "no network of it is there"
    elif ran == {"?"}:
        trained = "the networks' files do not say what they were trained on"
    else:
        trained = f"networks trained on {', '.join(sorted(ran))}"
    notes = [] if all(data.startswith("imagenet:") for data in (*ran, bench.data)) else [
        "The paper's columns are of networks trained and tested on ImageNet (1000 classes)."
    ]  # fmt: skip
    if bench.bad_images():
        notes.append(f"{bench.bad_images()} images do not decode, and count in no error.")
    return Result(
        name, f"{table.title}; {bench.data} ({bench.split}, {len(bench.images)} images); {trained}",
        ("network", "S", "protocol", "Q"), ("top-1 error %", "top-5 error %"), lines, notes,
        {"data": bench.data, "split": bench.split, "images": len(bench.images), "trained_on": sorted(ran),
         "environment": environment(bench.context.size, bench.context.device)},
    )  # fmt: skip


def _line(bench: Bench, cell: paper.Cell) -> Line:
    found = [bench.network(name) for name in cell.networks]
    names = " + ".join(name.rpartition("-")[0] for name in cell.networks)
    regime = cell.networks[0].rpartition("-")[2]
    why = "; ".join(dict.fromkeys(each for each in found if isinstance(each, str)))
    if why:
        labels = (names, regime, cell.protocol, "")
        return Line(labels, (Figure(cell.top1_error), Figure(cell.top5_error)), why)
    scales = dict.fromkeys(" ".join(map(str, bench.scales(name, cell.protocol))) for name in cell.networks)
    row = _measure(bench, cell)
    figures = (Figure(cell.top1_error), Figure(cell.top5_error))
    if row and row.top5_error is not None and row.top5_error_interval is not None:
        figures = (
            Figure(cell.top1_error, row.top1_error, row.top1_error_interval),
            Figure(cell.top5_error, row.top5_error, row.top5_error_interval),
        )
    return Line((names, regime, cell.protocol, "; ".join(scales)), figures)


def _measure(bench: Bench, cell: paper.Cell) -> Row | None:
    """On rank 0; None on the others, which take part all the same."""
    posteriors = average([bench.posteriors(name, cell.protocol) for name in cell.networks])
    if not bench.context.main:
        return None
    seen = ~posteriors.isnan().any(1)
    if not seen.any():
        raise ValueError(f"{bench.images.name}: none of its {len(bench.images)} images decodes")
    return row_of("", posteriors[seen], torch.from_numpy(bench.images.labels)[seen])
