"""One process or torchrun's many: who trains or evaluates what share, and how the shares become one.

torch.distributed does the work: DistributedDataParallel averages gradients over NCCL, or Gloo between CPUs, while the
backward still runs. The last layers' come first, and 103 M of D's 138 M parameters are theirs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from vggfast._deprecated import renamed


def _device_of(choice: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and count == 0):
        return torch.device("cpu")
    if local_rank >= count:
        raise ValueError(
            f"device {choice!r} needs a GPU for each local rank: this machine has {count}, got local rank {local_rank}"
        )
    return torch.device("cuda", local_rank)


def _join(backend: str) -> None:
    """Joins the group of torchrun's environment.

    torchrun's own store outlives the ranks that it restarts. So that these do not find the addresses of the dead, each
    attempt has a prefix.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    attempt = dist.PrefixStore(f"vggfast/attempt-{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size)


@dataclass(frozen=True)
class DistributedContext:
    """The processes that work together, as seen by one of them; a context manager, which ends the group.

    Attributes:
        rank, size: which of how many processes this is.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, device: str = "auto") -> DistributedContext:
        """Joins the group that torchrun's environment describes; without one, a context of one process.

        Args:
            device: "cpu", "cuda" (local rank r takes GPU r), or "auto": GPUs where there are any.

        Raises:
            ValueError: there is no GPU for this rank.
        """
        chosen = _device_of(device, int(os.environ.get("LOCAL_RANK", 0)))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if "RANK" not in os.environ:
            return cls(device=chosen)
        _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")  # a step's few sums are added on the CPU
        return cls(dist.get_rank(), dist.get_world_size(), chosen)

    def __enter__(self) -> DistributedContext:
        return self

    def __exit__(self, *_: object) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this process logs, prints and writes."""
        return self.rank == 0

    def totals(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def wrap(self, model: nn.Module, example: Tensor, compress: bool = False) -> nn.Module:
        """The model whose backward averages gradients over the ranks; with one rank, the model itself.

        Args:
            model: on this rank's device, with equal weights on every rank.
            example: (1, 3, H, W), an input for the first pass, which settles the order of the buckets: a resumed run
                adds gradients in the order in which it did before, and so gets the same sums.
            compress: send gradients in bfloat16.
        """
        if self.size == 1:
            return model
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        if compress:
            wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
        buffers = [buffer.clone() for buffer in model.buffers()]
        for _ in range(2):  # the second forward rebuilds the buckets in the order that the first backward saw
            wrapped(example.expand(2, -1, -1, -1)).sum().backward()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        wrapped.zero_grad(set_to_none=True)
        return wrapped

    def gather(self, texts: list[str]) -> list[str]:
        """The texts of all ranks, by rank."""
        if self.size == 1:
            return texts
        found: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(found, texts)
        return [text for of_rank in found for text in of_rank]

    def of_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def to_main(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank; on all ranks but the first an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values)
        return values or []

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives rank 0's values to all: of batch norm's running statistics, which each rank takes from its own rows."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def assert_equal(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raises RuntimeError where a rank's tensors are not, bit by bit, those of rank 0."""
        if self.size == 1:
            return
        own = hashlib.sha256()
        for tensor in tensors:
            own.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        digests: list[str | None] = [None] * self.size
        dist.all_gather_object(digests, own.hexdigest())
        if odd := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise RuntimeError(
                f"{what} of rank {odd[0]} are not those of rank 0: the ranks no longer train one network"
            )


__getattr__ = renamed(__name__, {"World": "vggfast.distributed:DistributedContext"})
