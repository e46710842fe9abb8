"""A linear SVM on features, by the paper's protocol for Caltech-101. Needs scikit-learn (the extra ``vggfast[train]``).

Source: Simonyan & Zisserman, appendix B.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vggfast._progress import Progress, silent

C_GRID = (0.1, 1.0, 10.0, 100.0)
_FOLDS = 3


@dataclass(frozen=True)
class SvmResult:
    """Figures in per cent, one of each split.

    Attributes:
        recalls: mean over the classes of the share of their test images that are recognised.
        accuracies: share of all test images that are recognised.
        cs: the SVM's C.
        train_images, test_images: of a split.
    """

    recalls: tuple[float, ...]
    accuracies: tuple[float, ...]
    cs: tuple[float, ...]
    train_images: int
    test_images: int

    @property
    def mean(self) -> float:
        """Of the recalls."""
        return statistics.fmean(self.recalls)

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation of the recalls; None of one split."""
        return statistics.stdev(self.recalls) if len(self.recalls) > 1 else None


def random_splits(
    labels: np.ndarray, train: int, test: int, splits: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices of the training images, of the test images), `splits` times.

    Of each class, `train` images drawn at random, and of its others up to `test`.

    Raises:
        ValueError: a number under 1, or a class of no more than `train` images.
    """
    for name, value in {"train": train, "test": test, "splits": splits}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"labels must have at least 2 classes, got {len(classes)}")
    if counts.min() <= train:
        raise ValueError(
            f"train must be at most {counts.min() - 1}, which leaves one of the {counts.min()} images of class number "
            f"{classes[counts.argmin()]} to test, got {train}"
        )
    generator = np.random.default_rng(seed)
    for _ in range(splits):
        drawn = [generator.permutation(np.flatnonzero(labels == label)) for label in classes]
        yield (
            np.concatenate([members[:train] for members in drawn]),
            np.concatenate([members[train : train + test] for members in drawn]),
        )


def caltech_protocol(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    train: int = 30,
    test: int = 50,
    splits: int = 3,
    seed: int = 0,
    c: float | None = None,
    progress: Progress = silent,
) -> SvmResult:
    """Trains linear SVMs, one class against all others, on random splits, and tests them.

    Args:
        features: (N, D), as :func:`vggfast.features.extract` gives them: rows of length 1.
        labels: (N,), whole numbers.
        train, test, splits, seed: see :func:`random_splits`.
        c: of the SVM; None chooses among :data:`C_GRID` by cross-validation within the training images of each split.
        progress: is told how many splits are done.

    Raises:
        ValueError: as :func:`random_splits`; features and labels do not fit; c is not above 0.
    """
    from sklearn.metrics import accuracy_score, recall_score
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import LinearSVC

    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features must have shape ({len(labels)}, D), a row for each label, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features has values that are not finite")
    if c is not None and c <= 0:
        raise ValueError(f"c must be greater than 0, got {c}")
    if c is None and 0 < train < _FOLDS:
        raise ValueError(f"train must be at least {_FOLDS} to choose c, got {train}")
    recalls, accuracies, cs = [], [], []
    progress(0, splits)
    for done, (known, unknown) in enumerate(random_splits(labels, train, test, splits, seed), 1):
        svm = LinearSVC(C=c or 1.0, random_state=seed)
        if c is None:
            folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
            svm = GridSearchCV(svm, {"C": C_GRID}, scoring="accuracy", cv=folds)
        svm.fit(features[known], labels[known])
        predicted = svm.predict(features[unknown])
        recalls.append(100 * float(recall_score(labels[unknown], predicted, average="macro", zero_division=0)))
        accuracies.append(100 * float(accuracy_score(labels[unknown], predicted)))
        cs.append(float(c or svm.best_params_["C"]))
        progress(done, splits)
    return SvmResult(tuple(recalls), tuple(accuracies), tuple(cs), len(known), len(unknown))
