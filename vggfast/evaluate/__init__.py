"""The paper's evaluation: dense over whole images, several scales, flips; top-1 and top-5 error."""

from vggfast.evaluate.dense import dense
from vggfast.evaluate.metrics import errors, evaluate_dense

__all__ = ["dense", "errors", "evaluate_dense"]
