"""The paper's figures, as data.

Source: Simonyan & Zisserman, tables 3 to 6, appendix A (table 8) and appendix B (table 12). Errors in per cent on
ImageNet's validation images, mean class recall and mean average precision in per cent.
"""

from __future__ import annotations

from typing import NamedTuple

REGIMES = {"256": (256, 256), "384": (384, 384), "jitter": (256, 512)}  # least and largest S in training


class Cell(NamedTuple):
    """A row of tables 3 to 6.

    Attributes:
        networks: "<configuration>-<regime>" of each; the posteriors of several are averaged.
        protocol: as of ``vggfast eval``.
        top1_error, top5_error: in per cent.
    """

    networks: tuple[str, ...]
    protocol: str
    top1_error: float
    top5_error: float


class Table(NamedTuple):
    title: str
    cells: tuple[Cell, ...]


def _cells(protocol: str, *rows: tuple[str, float, float]) -> tuple[Cell, ...]:
    return tuple(Cell(tuple(networks.split(" + ")), protocol, top1, top5) for networks, top1, top5 in rows)


TABLES = {
    "table3": Table(
        "table 3: one test scale",
        _cells(
            "single",
            ("A-256", 29.6, 10.4), ("A-LRN-256", 29.7, 10.5), ("B-256", 28.7, 9.9),
            ("C-256", 28.1, 9.4), ("C-384", 28.1, 9.3), ("C-jitter", 27.3, 8.8),
            ("D-256", 27.0, 8.8), ("D-384", 26.8, 8.7), ("D-jitter", 25.6, 8.1),
            ("E-256", 27.3, 9.0), ("E-384", 26.9, 8.7), ("E-jitter", 25.5, 8.0),
        ),
    ),
    "table4": Table(
        "table 4: several test scales",
        _cells(
            "dense",
            ("B-256", 28.2, 9.6),
            ("C-256", 27.7, 9.2), ("C-384", 27.8, 9.2), ("C-jitter", 26.3, 8.2),
            ("D-256", 26.6, 8.6), ("D-384", 26.5, 8.6), ("D-jitter", 24.8, 7.5),
            ("E-256", 26.9, 8.7), ("E-384", 26.7, 8.6), ("E-jitter", 24.8, 7.5),
        ),
    ),
    "table5": Table(
        "table 5: dense, multi-crop, and both",
        (
            *_cells("dense", ("D-jitter", 24.8, 7.5)), *_cells("multi-crop", ("D-jitter", 24.6, 7.5)),
            *_cells("both", ("D-jitter", 24.4, 7.2)),
            *_cells("dense", ("E-jitter", 24.8, 7.5)), *_cells("multi-crop", ("E-jitter", 24.6, 7.4)),
            *_cells("both", ("E-jitter", 24.4, 7.1)),
        ),
    ),
    "table6": Table(
        "table 6: two networks together",
        (
            *_cells("dense", ("D-jitter + E-jitter", 24.0, 7.1)),
            *_cells("multi-crop", ("D-jitter + E-jitter", 23.9, 7.2)),
            *_cells("both", ("D-jitter + E-jitter", 23.7, 6.8)),
        ),
    ),
}  # fmt: skip


class BoxCell(NamedTuple):
    """A row of appendix A: the box of the true class, from the centre crop; wrong where IoU is 0.5 or less.

    Attributes:
        file: of the weights, without its ending.
        boxes: "one for all" (SCR) or "one a class" (PCR).
        tuned: layers that were trained for it.
        error: in per cent.
    """

    file: str
    boxes: str
    tuned: str
    error: float


LOCALISATION = (
    BoxCell("D-localise-scr-fc", "one for all", "first two FC", 36.4),
    BoxCell("D-localise-pcr-fc", "one a class", "first two FC", 34.3),
    BoxCell("D-localise-pcr", "one a class", "all", 33.1),
)


class FeatureCell(NamedTuple):
    """A row of appendix B: a linear SVM on the penultimate layer's features.

    Attributes:
        data: what the figure is of.
        networks: "D", "E", or both, whose features are stacked.
        figure: mean class recall, or mean average precision on VOC-2007, in per cent.
        deviation: of the figure over three splits; None where the paper's restatement has none.
    """

    data: str
    networks: tuple[str, ...]
    figure: float
    deviation: float | None


CALTECH = "Caltech-101"
FEATURES = (
    FeatureCell(CALTECH, ("D",), 91.8, 1.0), FeatureCell(CALTECH, ("E",), 92.3, 0.5),
    FeatureCell(CALTECH, ("D", "E"), 92.7, 0.5),
    FeatureCell("Caltech-256", ("D",), 85.0, None), FeatureCell("Caltech-256", ("E",), 85.1, None),
    FeatureCell("Caltech-256", ("D", "E"), 86.2, None),
    FeatureCell("VOC-2007", ("D",), 89.3, None), FeatureCell("VOC-2007", ("E",), 89.3, None),
    FeatureCell("VOC-2007", ("D", "E"), 89.7, None),
)  # fmt: skip
TRAIN_IMAGES, TEST_IMAGES, SPLITS = 30, 50, 3  # a class, of Caltech-101


def test_scales(regime: str, protocol: str) -> tuple[int, ...]:
    """The paper's shorter sides Q of test images for a training scale S: S - 32, S, S + 32; or across the range of S.

    Source: sections 4.1 and 4.2.
    """
    low, high = REGIMES[regime]
    middle = (low + high) // 2
    if protocol == "single":
        return (middle,)
    return (low - 32, low, low + 32) if low == high else (low, middle, high)
