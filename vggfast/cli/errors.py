"""How a command says that something is wrong: one line on stderr, however many processes find the same."""

from __future__ import annotations

import hashlib
import os
import sys
from datetime import timedelta


class UsageError(ValueError):
    """Options that contradict each other; the process' exit code is 2."""


def rank() -> int:
    """Which of torchrun's processes this is; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def tell(text: str) -> None:
    """Prints an error, with the rank where that is not 0. Of ranks that have the same one to tell, the first does."""
    if _first(text):
        print(f"vggfast: {f'rank {rank()}: ' if rank() else ''}{text}", file=sys.stderr, flush=True)


def _first(text: str) -> bool:
    """Whether no other rank has told this: torchrun's own store counts, which outlives the ranks."""
    environment = os.environ
    if environment.get("WORLD_SIZE", "1") == "1" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    key = f"vggfast/{environment.get('TORCHELASTIC_RESTART_COUNT')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5)).add(key, 1) == 1
    except RuntimeError:  # told twice is better than not at all
        return True
