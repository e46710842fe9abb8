"""The paper's evaluation: dense over whole images, several scales, flips; top-1 and top-5 error; features, SVMs."""

from vggfast.evaluate.dense import dense
from vggfast.evaluate.features import extract
from vggfast.evaluate.metrics import errors, evaluate_dense
from vggfast.evaluate.svm import caltech_protocol

__all__ = ["caltech_protocol", "dense", "errors", "evaluate_dense", "extract"]
