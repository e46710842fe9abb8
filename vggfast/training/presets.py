"""Named recipes: the paper's experiments, and what changes from them where images are small.

Source: Simonyan & Zisserman, section 3.1, tables 3 and 4, appendix A.
"""

from __future__ import annotations

from typing import Any

# S = 256 from scratch; S = 384 from the net of S = 256 at a lower rate; S from [256, 512] from the net of S = 384.
_TRAINING_SCALES: dict[str, dict[str, Any]] = {
    "": {},
    "-384": {"scale_min": 384, "scale_max": 384, "lr": 1e-3, "init_layers": "all"},
    "-jitter": {"scale_min": 256, "scale_max": 512, "lr": 1e-3, "init_layers": "all"},
}
_STARTING_SCALES = {"-384": 256, "-jitter": 384}

# Without batch norm the loss stays at ln(200) for hundreds of steps before it falls. Images are read without a process
# of its own: the cores of a small machine are the kernels'.
_TINY: dict[str, Any] = {
    "batch_norm": True, "dropout": 0.2, "crop": 64, "scale_min": 73, "scale_max": 73, "hidden": 1024, "workers": 0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    **{
        f"paper-{config}{scale}": {"config": config, **values}
        for config in ("A", "A-LRN", "B", "C", "D", "E")
        for scale, values in _TRAINING_SCALES.items()
        if not scale or config in "CDE"  # the paper's tables have no other scales of A and B
    },
    # Appendix A: from the classification net of the same S.
    **{
        f"paper-D-{predict}": {"config": "D", "predict": predict, "init_layers": "body", "lr": 1e-3}
        for predict in ("box", "boxes")
    },
    # Small folders of photos, from a trained network (finetuning.py). What its convolutions give may be of any scale:
    # AdamW's steps do not depend on that, and SGD's diverged.
    "finetune": {
        "optimiser": "adamw", "lr": 3e-4, "schedule": "cosine", "warmup": 10, "batch_size": 32, "epochs": 20,
        "train_layers": "fc", "hidden": 512,
    },
    "digits": {
        "crop": 32, "scale_min": 32, "scale_max": 40, "width": 0.5, "hidden": 256, "batch_size": 64,
        "epochs": 50, "patience": 6, "workers": 0,
    },
    "tiny-imagenet": {
        **_TINY, "min_area": 0.35, "grow_from": 32, "epochs": 24, "batch_size": 128,
        "lr": 0.05, "schedule": "one-cycle", "low_momentum": 0.85, "decay_all": False, "label_smoothing": 0.1,
    },
    # From the classification net, at a lower rate; crops at S leave an object's box its shape.
    **{
        f"tiny-imagenet-{predict}": {
            **_TINY, "predict": predict, "init_layers": "body", "epochs": 4, "batch_size": 64, "lr": 0.015,
            "schedule": "cosine", "warmup": 40, "decay_all": False, "dropout": 0.0,
        }
        for predict in ("box", "boxes")
    },
}  # fmt: skip


def preset(name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        ValueError: there is none of this name; the text lists those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def preset_for(data: str, predict: str = "classes") -> str:
    """The preset that suits this kind of data and what is predicted; "" where the paper's own recipe does."""
    kind = data.partition(":")[0]
    for_boxes = f"{kind}-{predict}"
    return for_boxes if for_boxes in PRESETS else kind if kind in PRESETS else ""


def scale_of(name: str) -> str:
    """The end of a preset's name that says which S: "-384", "-jitter", or "" for 256 and for other presets."""
    return next((scale for scale in _STARTING_SCALES if name.endswith(scale)), "")


def starting_scale(name: str) -> int | None:
    """The S of the net that this preset goes on from; None where it needs none."""
    return _STARTING_SCALES.get(scale_of(name))
