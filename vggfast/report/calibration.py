"""How far a network's confidence can be believed, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vggfast.evaluate.metrics import Reliability
from vggfast.report.figures import save


def reliability_curve(curve: Reliability, path: str | Path) -> None:
    """Of the answers of each confidence, how many are right, and how many answers there are.

    Args:
        curve: of :func:`vggfast.evaluate.metrics.reliability`.
        path: where the PNG goes.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    right, count = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges, counts = 100 * curve.edges.numpy(), curve.counts.numpy()
    middles, widths = (edges[1:] + edges[:-1]) / 2, 0.94 * (edges[1:] - edges[:-1])
    accuracy, confidence = 100 * curve.accuracy.numpy(), 100 * curve.confidence.numpy()
    right.bar(middles, accuracy, widths, color="#4477aa", alpha=0.35, label="right answers")
    right.plot(confidence, accuracy, ".-", color="#4477aa", label="over their mean confidence")
    right.plot([0, 100], [0, 100], ":", color="grey", label="as confident as right")
    right.set(ylabel="right answers (%)", xlim=(0, 100), ylim=(0, 100))
    right.set_title(f"calibration error {100 * curve.error:.1f} %")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    count.bar(middles, counts, widths, color="#777777")
    count.set(ylabel="images", xlabel="confidence (%)")
    count.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in (right, count):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    save(figure, path)
