"""The paper's recipe, on one process or on torchrun's many: a run from its first step, or from its last checkpoint.

Rank 0 writes the run's folder, which :mod:`vggfast.runs` describes. A resumed run equals one that was never stopped.

Source: Simonyan & Zisserman, sections 3.1 and 3.3.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from vggfast.data import Batch, Batches, CentreCrop
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.runs.config import TrainConfig
from vggfast.runs.folder import remove_run, remove_unfinished
from vggfast.runs.log import RunLog
from vggfast.training.build import build_model, build_optimiser, open_augmentation, set_training
from vggfast.training.checkpoint import Checkpoints, Progress
from vggfast.training.observer import Observer
from vggfast.training.schedule import Schedule
from vggfast.training.step import StepMetrics, TrainStep
from vggfast.training.task import Task
from vggfast.weights import save_model

_RISE = 5  # of the training loss, over its first mean, at which a run ends


class Trainer:
    """One run in folder `out`, as this rank sees it.

    Args:
        config: what defines the run.
        task: what it learns; :func:`vggfast.tasks.build_trainer` finds that in `config`.
        out: its folder; made when absent.
        context: the ranks that train together.
        resume: go on from the folder's newest whole checkpoint; from the first step where there is none yet.
        overwrite: replace the run that the folder holds; its files go once everything else has been checked.
        observer: is told how the run goes.
        stop_after: seconds of a session; the first step that begins later is its last one.

    Attributes:
        out_of_time: whether `stop_after` has stopped the run.

    Raises:
        FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` is True.
        FileNotFoundError, ValueError: data, configuration or checkpoint do not fit; the text says which.
    """

    def __init__(
        self, config: TrainConfig, task: Task, out: str | Path, context: DistributedContext | None = None, *,
        resume: bool = False, overwrite: bool = False, observer: Observer | None = None,
        stop_after: float | None = None,
    ) -> None:  # fmt: skip
        self.config, self.task, self.out = config, task, Path(out)
        self.context, self.observer = context or DistributedContext(), observer or Observer()
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.keep)
        self.stop_after, self.out_of_time = stop_after, False
        self._began = time.monotonic()
        self._processors: float | None = None  # their time when it was last counted
        if not (resume or overwrite) and ((self.out / "config.yaml").exists() or self.checkpoints.paths()):
            raise FileExistsError(
                f"{self.out} holds a run: resume it, overwrite it, or choose another folder (resume, overwrite, out)"
            )
        self.train_set, self.val_set = self.task.open_splits(config)
        self._open_batches()
        resumed = resume and bool(self.checkpoints.paths())
        outputs = self.task.outputs(len(self.train_set.classes))
        self.model = build_model(config, outputs, resumed).to(self.context.device)
        self.optimiser = build_optimiser(config, self.model)
        self.schedule = Schedule(config, self.total_steps)
        self.train_step = TrainStep(config, task, self.context, self.model, self.optimiser)
        self.progress = Progress()
        self.warnings: list[str] = []
        if resume:
            self._restore()
        if self.context.totals([self.progress.step])[0] != self.context.size * self.progress.step:
            raise ValueError(
                f"{self.checkpoints.folder} must be a folder that all ranks share, and is not the same for all"
            )
        self.stop_signal = 0  # the number of the signal that asks to stop
        self._prepare_folder(overwrite)

    def _open_batches(self) -> None:
        config, context = self.config, self.context
        self.augmentation = open_augmentation(config, self.train_set)
        self.preprocessing = self.augmentation.preprocessing
        centre = CentreCrop(config.crop, config.test_scales()[1], self.preprocessing)
        shared: dict[str, Any] = {
            "workers": config.workers, "rank": context.rank, "ranks": context.size, "on_bad_image": config.on_bad_image,
            "pin_memory": context.device.type == "cuda",
        }  # fmt: skip
        boxes = self.task.boxes
        self.batches = Batches(
            self.train_set, self.augmentation, config.batch_size, shuffle=True, seed=config.seed,
            boxes=boxes(self.train_set), **shared,
        )  # fmt: skip
        self.val_batches = Batches(
            self.val_set, centre, config.batch_size, shuffle=False, boxes=boxes(self.val_set), **shared
        )

    def _prepare_folder(self, overwrite: bool) -> None:
        """Takes away what an overwritten or a killed run left, and opens the log."""
        self.log: RunLog | None = None
        if not self.context.main:
            return
        if overwrite:
            remove_run(self.out)
        remove_unfinished(self.out)
        self.config.write(self.out / "config.yaml")
        self.log = RunLog(self.out, self.progress.step, self.observer.on_warning)
        metadata = environment(self.context.size, self.context.device)
        self.log.event("session begins", step=self.progress.step, environment=metadata)
        for text in self.warnings:
            self.log.event(text, step=self.progress.step)

    # ---- where the run stands -------------------------------------------------------------------------------------

    @property
    def run_metadata(self) -> dict[str, Any]:
        """What `eval` and `predict` need to know beside the weights."""
        return {
            "classes": self.train_set.classes,
            "preprocessing": self.preprocessing.as_dict(),
            "data": self.config.val_data or self.config.data,
            "whole": bool(self.config.val_data),
            "images": [len(self.train_set), len(self.val_set)],
            "scales": list(self.config.test_scales()),
            **self.task.metadata(self.train_set),
        }

    @property
    def total_steps(self) -> int:
        whole = self.config.epochs * len(self.batches)
        return min(whole, self.config.steps) if self.config.steps else whole

    def _finished(self) -> bool:
        rows = self.progress.epochs
        validated = bool(rows) and rows[-1]["step"] == self.progress.step
        return validated and (self.progress.step >= self.total_steps or self.schedule.given_up)

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        parts = {"optimiser": self.optimiser, "schedule": self.schedule, "scaler": self.train_step.scaler}
        return parts if self.train_step.average is None else {**parts, "average": self.train_step.average}

    def _content(self) -> dict[str, Any]:
        return {
            "arguments": {**self.model.arguments, "extra": self.run_metadata},
            "model": self.model.state_dict(),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "progress": dict(self.progress.__dict__),
            "ranks": self.context.size,
        }

    def _restore(self) -> None:
        content = self.checkpoints.newest(self.warnings.append)
        if content is None:
            return
        theirs = {name: value for name, value in content["arguments"].items() if name != "extra"}
        if different := [name for name, value in theirs.items() if value != self.model.arguments.get(name)]:
            listed = ", ".join(
                f"{n} is {theirs[n]!r} there and {self.model.arguments.get(n)!r} here" for n in different
            )
            raise ValueError(f"{self.checkpoints.folder} is of another network: {listed}")
        metadata, found = self.run_metadata, content["arguments"]["extra"]
        if changed := [name for name, value in metadata.items() if found.get(name) != value]:
            raise ValueError(
                f"{self.checkpoints.folder} is of other data: {', '.join(changed)} are no longer the same "
                f"({found['images'][0]} training images there and {metadata['images'][0]} here)"
            )
        self.model.load_state_dict(content["model"])
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        self.progress = Progress(**content["progress"])
        if content["ranks"] != self.context.size:
            self.warnings.append(
                f"this run was by {content['ranks']} ranks and goes on with {self.context.size}: images and order are "
                "the same, but sums are added in another order and dropout masks differ, so it is no longer bit-equal"
            )

    def _save(self, last: bool = False) -> None:
        """Writes a checkpoint; a failure is a warning, and the run goes on, but for the last one."""
        self._count_processors()
        self.train_step.share_statistics()
        self.context.assert_equal(list(self.model.state_dict().values()), "weights")
        self._write("a checkpoint", lambda: self.checkpoints.save(self.progress.step, self._content()), last)

    def _write(self, what: str, write: Any, must: bool = False) -> bool:
        if self.log is None:
            return True
        try:
            write()
            return True
        except OSError as error:
            if must:
                raise
            self.observer.on_warning(f"{what} was not written: {error}")
            self.log.event(f"{what} was not written: {error}", step=self.progress.step)
            return False

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Trains to the end; False where a signal (interrupt or termination) or `stop_after` stopped it, after a
        checkpoint.

        Raises:
            FloatingPointError: loss or gradient is not finite, and the text names step, layer and norms; or the loss
                rises far above what it was at first.
            OSError: the last checkpoint could not be written.
        """
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.observer.on_begin(self.progress.step, self.total_steps)
            for text in self.warnings:
                self.observer.on_warning(text)
            while not self._finished():
                if not (self._train_epoch() and self._close_epoch()):
                    return False
        except FloatingPointError as error:
            if self.log is not None:
                self.log.event(str(error), step=self.progress.step)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self.log is not None:
                self.log.close()
            self.observer.on_end()
        return True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.stop_signal = number

    def _late(self) -> bool:
        return self.stop_after is not None and time.monotonic() - self._began > self.stop_after

    def _count_processors(self) -> None:
        """Adds the processors' time since the last call to the progress, while an epoch is trained; on all ranks."""
        if self._processors is not None:
            before, self._processors = self._processors, sum(os.times()[:4])
            self.progress.core_seconds += self.context.totals([self._processors - before])[0]

    def _waited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; how long they kept the trainer waiting goes into the progress."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.progress.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _train_epoch(self) -> bool:
        """Trains to the end of the epoch or of the run; False where a signal or the time stopped it first."""
        progress, config = self.progress, self.config
        set_training(self.model)
        began, self._processors = time.monotonic(), sum(os.times()[:4])
        transform = self.augmentation.at(config.crop_at(progress.epoch))
        for batch in self._waited(self.batches.epoch(progress.epoch, progress.batch, transform)):
            if progress.step >= self.total_steps:
                break
            step, stop = progress.step, self.stop_signal > 0 or self._late()
            rate, momentum = self.schedule.rate(step), self.schedule.momentum(step)
            sums = self.train_step(batch, step, rate, stop, momentum)
            now = time.monotonic()
            progress.seconds, began = progress.seconds + now - began, now
            progress.step += 1
            progress.batch += 1
            self._log_step(sums, batch)
            if sums.stop and progress.step < self.total_steps:
                self.out_of_time = self.context.of_main(self._late() and not self.stop_signal)
                self.stop_signal = self.stop_signal or signal.SIGTERM
                self._save(last=True)
                return False
            if progress.step % config.checkpoint_every == 0:
                self._save()
        self._count_processors()
        self._processors = None
        self._check_rise(progress.sums[0] / max(progress.sums[3], 1))
        return True

    def _log_step(self, sums: StepMetrics, batch: Batch) -> None:
        progress = self.progress
        for totals in (progress.sums, progress.window):
            for i, value in enumerate((sums.loss, *sums.errors, sums.images)):
                totals[i] += value
        if sums.bad:
            self._tell_bad(batch.bad, "another image takes its place")
        seconds = max(progress.seconds, 1e-9)
        loss, first, second = (value / max(progress.window[3], 1) for value in progress.window[:3])
        row = {
            "step": progress.step, "epoch": progress.epoch, "loss": loss,
            "top1_error": 100 * first, "top5_error": 100 * second,
            "lr": self.schedule.rate(progress.step - 1), "grad_norm": sums.grad_norm,
            "images_per_s": progress.sums[3] / seconds, "data_wait": progress.waited / seconds,
        }  # fmt: skip
        self.observer.on_step(row)
        if progress.step % self.config.log_every == 0:
            if self.log is not None:
                self.log.step(row)
            progress.window = [0.0] * 4
            self._check_rise(loss)

    def _check_rise(self, loss: float) -> None:
        """Raises FloatingPointError where the mean of some steps' losses says that the run diverges."""
        progress, config = self.progress, self.config
        progress.first_loss = progress.first_loss or loss
        guessing = math.log(self.task.outputs(len(self.train_set.classes))) if config.predict == "classes" else 0.0
        if loss > _RISE * max(progress.first_loss, guessing):
            raise FloatingPointError(
                f"the training loss is {loss:.4g} at step {progress.step}, more than {_RISE} times the "
                f"{progress.first_loss:.4g} that it was at first: the run diverges. Give a lower --lr than "
                f"{config.lr:g}, --warmup or --clip-norm; for a small folder, start from a trained network "
                "(--preset finetune --init-from FILE)"
            )

    def _tell_bad(self, texts: list[str], what: str) -> None:
        """Counts and names the images of all ranks that did not decode."""
        texts = self.context.gather(texts)
        self.progress.bad_images += len(texts)
        for text in texts:
            self.observer.on_warning(f"{text}; {what}")
            if self.log is not None:
                self.log.event(text, step=self.progress.step)

    def _close_epoch(self) -> bool:
        """Validates, lets the schedule know, keeps the best weights, writes everything.

        False where a signal stopped the validation, which the resumed run begins again.
        """
        progress = self.progress
        self._save()  # a validation may take long
        found = self.validate()
        if found is None:
            return False
        loss, first, second = (value / max(progress.sums[3], 1) for value in progress.sums[:3])
        seconds = max(progress.seconds, 1e-9)
        row = {
            "epoch": progress.epoch, "step": progress.step, "lr": self.schedule.rate(max(progress.step - 1, 0)),
            "train_loss": loss, "train_top1_error": 100 * first, "train_top5_error": 100 * second, **found,
            "seconds": progress.seconds, "core_seconds": progress.core_seconds,
            "images_per_s": progress.sums[3] / seconds, "data_wait": progress.waited / seconds,
            "bad_images": progress.bad_images,
        }  # fmt: skip
        progress.epochs.append(row)
        if progress.batch == len(self.batches):  # else `steps` ended the run within an epoch
            self.schedule.epoch_done(row["val_top1_error"])
            progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, [0.0] * 4
            progress.seconds, progress.core_seconds, progress.waited, progress.bad_images = 0.0, 0.0, 0.0, 0
        if self.log is not None:
            self.log.epoch(row)
            best = self.out / "model.safetensors"
            if row["val_top1_error"] < progress.best_top1_error or not best.exists():
                metadata = self.run_metadata
                if self._write("the best network", lambda: save_model(self.train_step.result, best, metadata)):
                    progress.best_top1_error = row["val_top1_error"]
        self._save(last=self._finished())
        self.observer.on_epoch(row)
        return True

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """The task's loss and errors (per cent) on all ranks' validation images, centre crops.

        None where a signal to any rank stopped it.
        """
        self.train_step.share_statistics()
        model = self.train_step.result.eval()
        sums, bad = np.zeros(4), []
        for number, batch in enumerate(self.val_batches.epoch(), 1):
            self.observer.on_validation_batch(number, len(self.val_batches))
            if self.context.totals([self.stop_signal > 0])[0]:
                self.stop_signal = self.stop_signal or signal.SIGTERM
                return None
            bad += batch.bad
            images, labels, counts, *boxes = (t.to(self.context.device, non_blocking=True) for t in batch.tensors)
            found = self.task.measure(self.train_step.forward(model, images), 0.0, labels, *boxes)
            sums += torch.stack([*((each * counts).sum() for each in found), counts.sum()]).double().cpu().numpy()
        set_training(self.model)
        loss, first, second, seen = self.context.totals(sums.tolist())
        self._tell_bad(bad, "it counts in no error")
        if not seen:
            raise ValueError(f"{self.val_set.name}: none of its {len(self.val_set)} validation images decodes")
        return {"val_loss": loss / seen, "val_top1_error": 100 * first / seen, "val_top5_error": 100 * second / seen}
