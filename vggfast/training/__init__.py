"""The paper's training recipe, on one process or many: TrainConfig says what, vggfast.training.trainer.Trainer does it.

Importing this is light; the trainer needs the extra ``vggfast[train]``.
"""

from vggfast.runs.config import TrainConfig

__all__ = ["TrainConfig"]
