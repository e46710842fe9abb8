"""What a run ends with: the dense evaluation of its best weights, figures, metrics.json and the closing table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.evaluation import evaluate_dense
from vggfast.report import contact_sheet, curves
from vggfast.training.console import Live, console, print_table
from vggfast.training.log import read_csv
from vggfast.training.trainer import Trainer
from vggfast.weights import load_model
from vggfast.weights.files import write_atomically

_SHEET_IMAGES = 40


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def finish(trainer: Trainer) -> None:
    """Evaluates, draws, writes and prints; everything goes into the run's folder."""
    out, config, images = trainer.out, trainer.config, trainer.val_set
    model, _ = load_model(out / "model.safetensors")
    scales = config.test_scales()
    protocols = {"dense, one scale": scales[1:2], f"dense, {len(scales)} scales": scales}
    results: dict[str, dict[str, Any]] = {}
    for name, used in protocols.items():
        with Live(name, len(images)) as live:
            found, posteriors = evaluate_dense(model, images, trainer.preprocessing, used, progress=live.to)
        results[name] = {"scales": list(used), "flip": True, **found}

    curves(read_csv(out / "steps.csv"), trainer.progress.epochs, out / "curves.png")
    _draw_sheet(trainer, posteriors, out / "predictions.png")
    seconds = sum({row["epoch"]: row["seconds"] for row in trainer.progress.epochs}.values())
    best = min(trainer.progress.epochs, key=lambda row: row["val_top1"])
    write_json(
        out / "metrics.json",
        {
            "steps": trainer.progress.step, "epochs": trainer.progress.epochs[-1]["epoch"] + 1,
            "train_seconds": seconds, "best_epoch": best["epoch"],
            "centre_crop": {"top1": best["val_top1"], "top5": best["val_top5"]}, "evaluation": results,
        },
    )  # fmt: skip

    rows = [("centre crop", str(scales[1]), f"{best['val_top1']:.2f}", f"{best['val_top5']:.2f}")]
    rows += [
        (f"{name}, flips", " ".join(map(str, found["scales"])), f"{found['top1']:.2f}", f"{found['top5']:.2f}")
        for name, found in results.items()
    ]
    columns = ("evaluation", "scales Q", "top-1 error %", "top-5 error %")
    print_table(f"{config.config} on {config.data}, {len(images)} held-out images, {seconds:.0f} s of training",
                columns, rows)  # fmt: skip
    for name, what in {
        "metrics.json": "these figures", "metrics.csv": "validation after each epoch", "steps.csv": "training loss",
        "curves.png": "loss and error curves", "predictions.png": "contact sheet of predictions",
        "model.safetensors": "the best weights", "checkpoint.pt": "what --resume needs",
    }.items():  # fmt: skip
        console.print(f"  {out / name}  {what}")


def _draw_sheet(trainer: Trainer, posteriors: Any, path: Path) -> None:
    """A random sample, with every mistake that fits shown first."""
    images, predicted = trainer.val_set, posteriors.argmax(1).numpy()
    order = np.random.default_rng(0).permutation(len(images))
    wrong = [i for i in order if predicted[i] != images.labels[i]][: _SHEET_IMAGES // 2]
    right = [i for i in order if predicted[i] == images.labels[i]][: _SHEET_IMAGES - len(wrong)]
    chosen = wrong + right
    contact_sheet(
        [images.image(i) for i in chosen],
        [images.classes[images.labels[i]] for i in chosen],
        [images.classes[predicted[i]] for i in chosen],
        [posteriors[i, predicted[i]].item() for i in chosen],
        path,
    )
