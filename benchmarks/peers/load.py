"""What other processes take from the machine while the clock runs: a figure taken beside a busy neighbour is none."""

from __future__ import annotations

import os
import time
from pathlib import Path

TRUSTED = 0.03  # share of the machine that others may take before a table says so
_TICK = os.sysconf("SC_CLK_TCK")


def everyone() -> float:
    """Seconds of processor time that all processes and the hypervisor's other guests have used."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def _used(process: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


class Neighbours:
    """Adds up what others took while a process was timed. Without Linux's /proc it knows nothing."""

    def __init__(self) -> None:
        self.known = Path("/proc/stat").exists()
        self.seconds = self.taken = 0.0

    def start(self, process: int) -> None:
        self._began = time.perf_counter(), self._others(process)

    def stop(self, process: int) -> None:
        began, others = self._began
        self.seconds += time.perf_counter() - began
        self.taken += self._others(process) - others

    def _others(self, process: int) -> float:
        return everyone() - _used(process) - _used(os.getpid()) if self.known else 0.0

    @property
    def share(self) -> float | None:
        """Share of the machine's processors that others took."""
        if not self.known or not self.seconds:
            return None
        return max(0.0, self.taken / self.seconds / (os.cpu_count() or 1))
