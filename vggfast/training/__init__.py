"""The paper's training recipe on one process. Needs the extra ``vggfast[train]``."""

from vggfast.training.config import TrainConfig
from vggfast.training.trainer import Trainer

__all__ = ["TrainConfig", "Trainer"]
