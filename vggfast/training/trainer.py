"""The paper's recipe on one process: SGD with momentum, L2, dropout, the rate divided by 10 when validation stalls.

Source: Simonyan & Zisserman, section 3.1. A run is a folder:
    config.json        what defines it
    checkpoint.pt      everything the next step depends on; a resumed run equals one that was never stopped
    model.safetensors  the weights with the lowest validation top-1 error so far
    steps.csv          step, epoch, loss, learning rate, every few steps
    metrics.csv        validation after each epoch
"""

from __future__ import annotations

import csv
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast.data import Augmentation, Batches, ImageSet, Preprocessing, colour_statistics, open_dataset
from vggfast.data.transforms import CentreCrop, ColourStatistics
from vggfast.evaluation import errors
from vggfast.models import VGG
from vggfast.training import checkpoint
from vggfast.training.config import TrainConfig
from vggfast.training.console import Live
from vggfast.weights import save_model
from vggfast.weights.files import write_atomically

STEP_COLUMNS = ("step", "epoch", "loss", "lr")
EPOCH_COLUMNS = ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds", "images_per_s")
RUN_FILES = (
    "config.json", "checkpoint.pt", "model.safetensors", "steps.csv", "metrics.csv", "metrics.json", "curves.png",
    "predictions.png",
)  # fmt: skip
_STATISTICS_IMAGES = 2000  # drawn from the training set for mean, deviation and principal axes of its colours


def measure_colours(images: ImageSet) -> ColourStatistics:
    """Colour statistics of a fixed random sample of the data set."""
    chosen = np.random.default_rng(0).permutation(len(images))[:_STATISTICS_IMAGES]
    return colour_statistics(images.image(i) for i in chosen)


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_csv(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: int(value) if value.isdigit() else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


class Trainer:
    """One run in folder `out`.

    Args:
        config: what defines the run.
        out: its folder; made when absent.
        resume: go on from the folder's checkpoint.
        overwrite: replace the run that the folder holds; its files go once everything else has been checked.

    Raises:
        FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` is True.
        FileNotFoundError, ValueError: data, configuration or checkpoint do not fit; the text says which.
    """

    def __init__(self, config: TrainConfig, out: str | Path, resume: bool = False, overwrite: bool = False) -> None:
        self.config, self.out = config, Path(out)
        if not (resume or overwrite) and (self.out / "checkpoint.pt").exists():
            raise FileExistsError(f"{self.out} holds a run: resume it, overwrite it, or choose another folder")
        self.train_set, self.val_set = open_dataset(config.data, "train"), open_dataset(config.data, "val")
        statistics = measure_colours(self.train_set)
        std = statistics.std if config.pixel_std else np.ones(3)
        self.preprocessing = Preprocessing(tuple(statistics.mean.tolist()), tuple(std.tolist()))
        augmentation = Augmentation(
            config.crop, (config.scale_min, config.scale_max), config.flip, config.colour_shift, statistics,
            self.preprocessing,
        )  # fmt: skip
        self.batches = Batches(
            self.train_set, augmentation, config.batch_size, shuffle=True, seed=config.seed, workers=config.workers,
            keep_last=False,
        )  # fmt: skip
        centre = CentreCrop(config.crop, config.test_scales()[1], self.preprocessing)
        self.val_batches = Batches(self.val_set, centre, config.batch_size, shuffle=False, workers=config.workers)
        torch.manual_seed(config.seed)
        self.model = VGG(
            config.config, len(self.train_set.classes), dropout=config.dropout, batch_norm=config.batch_norm,
            init=config.init, width=config.width, hidden=config.hidden, pool_size=config.pool_size,
        )  # fmt: skip
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimiser, factor=0.1, patience=config.patience, threshold=0.0, threshold_mode="abs",
            min_lr=config.lr * 0.1**config.drops, eps=0.0,
        )  # fmt: skip
        self.progress = checkpoint.Progress()
        if resume:
            self.progress = checkpoint.restore(self.out / "checkpoint.pt", self.model, self.optimiser, self.schedule)
        self._step_rows = [
            row for row in read_csv(self.out / "steps.csv") if resume and row["step"] <= self.progress.step
        ]
        self._stop_signal: int | None = None
        for name in RUN_FILES if overwrite else ():
            (self.out / name).unlink(missing_ok=True)
        config.write(self.out / "config.json")

    @property
    def run_facts(self) -> dict[str, Any]:
        """What `eval` and `predict` need to know beside the weights."""
        return {
            "classes": self.train_set.classes,
            "preprocessing": self.preprocessing.as_dict(),
            "data": self.config.data,
            "scales": list(self.config.test_scales()),
        }

    @property
    def lr(self) -> float:
        return self.optimiser.param_groups[0]["lr"]

    @property
    def total_steps(self) -> int:
        whole = self.config.epochs * len(self.batches)
        return min(whole, self.config.steps) if self.config.steps else whole

    def run(self) -> bool:
        """Trains to the end; False where a signal (interrupt or termination) stopped it, after a checkpoint.

        Raises:
            FloatingPointError: the loss is no longer finite; the text names the step.
        """
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Live("training", self.total_steps, self.progress.step) as live:
                while not self._finished():
                    if not self._train_epoch(live):
                        return False
                    self._close_epoch(live)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._stop_signal = number

    def _finished(self) -> bool:
        rows = self.progress.epochs
        return self.progress.step >= self.total_steps and bool(rows) and rows[-1]["step"] == self.progress.step

    def _train_epoch(self, live: Live) -> bool:
        """Trains to the end of the epoch or of the run; False where a signal stopped it first."""
        progress, config = self.progress, self.config
        self.model.train()
        began = time.monotonic()
        for batch in self.batches.epoch(progress.epoch, progress.batch):
            if self._stop_signal is not None or progress.step >= self.total_steps:
                break
            loss = self._step(batch.images, batch.labels)
            progress.step += 1
            progress.batch += 1
            progress.epoch_loss += loss
            progress.epoch_seconds += time.monotonic() - began
            began = time.monotonic()
            self._log_step(loss)
            rate = progress.batch * config.batch_size / progress.epoch_seconds
            live.to(progress.step, f"epoch {progress.epoch}  loss {loss:.3f}  lr {self.lr:g}  {rate:.0f} images/s")
            if progress.step % config.checkpoint_every == 0:
                self._save()
        if self._stop_signal is not None and progress.step < self.total_steps:
            self._save()
            return False
        return True

    def _close_epoch(self, live: Live) -> None:
        """Validates, lets the schedule know, keeps the best weights, writes everything."""
        progress = self.progress
        row = {
            "epoch": progress.epoch, "step": progress.step, "lr": self.lr,
            "train_loss": progress.epoch_loss / max(progress.batch, 1), **self.validate(),
            "seconds": progress.epoch_seconds,
            "images_per_s": progress.batch * self.config.batch_size / max(progress.epoch_seconds, 1e-9),
        }  # fmt: skip
        progress.epochs.append(row)
        if progress.batch == len(self.batches):  # else `steps` ended the run within an epoch
            self.schedule.step(row["val_top1"])
            progress.epoch, progress.batch, progress.epoch_loss, progress.epoch_seconds = (
                progress.epoch + 1,
                0,
                0.0,
                0.0,
            )
        if row["val_top1"] < progress.best_top1 or not (self.out / "model.safetensors").exists():
            progress.best_top1 = row["val_top1"]
            save_model(self.model, self.out / "model.safetensors", self.run_facts)
        self._save()
        live.line(
            f"epoch {row['epoch']:3d}  step {row['step']:6d}  lr {row['lr']:g}  loss {row['train_loss']:.4f}  "
            f"validation loss {row['val_loss']:.4f}  top-1 error {row['val_top1']:.2f} %  top-5 {row['val_top5']:.2f} %"
            f"  {row['images_per_s']:.0f} images/s"
        )

    def _step(self, images: Tensor, labels: Tensor) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(images), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.progress.step}: a lower lr, another init or clip_norm may help; "
                f"{self.out} keeps the last checkpoint"
            )
        loss.backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        return value

    def _log_step(self, loss: float) -> None:
        window = self.progress.window
        window.append(loss)
        if self.progress.step % self.config.log_every == 0:
            self._step_rows.append(
                {
                    "step": self.progress.step,
                    "epoch": self.progress.epoch,
                    "loss": float(np.mean(window)),
                    "lr": self.lr,
                }
            )
            window.clear()

    def _save(self) -> None:
        write_csv(self.out / "steps.csv", STEP_COLUMNS, self._step_rows)
        write_csv(self.out / "metrics.csv", EPOCH_COLUMNS, self.progress.epochs)
        checkpoint.save(
            self.out / "checkpoint.pt", self.model, self.optimiser, self.schedule, self.progress, self.run_facts
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss (nats) and errors (per cent) on the validation images, centre crops."""
        self.model.eval()
        outputs = [(self.model(batch.images), batch.labels) for batch in self.val_batches.epoch()]
        scores, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        found = errors(scores, labels)
        return {"val_loss": F.cross_entropy(scores, labels).item(), **{f"val_{k}": v for k, v in found.items()}}
