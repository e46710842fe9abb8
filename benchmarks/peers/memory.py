"""One case of bench_memory.py, in a process of its own: prints the memory that it took as a line of JSON."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.network import Spec, images

CALLS = 3


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset) of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this needs Linux")


def reset_peak() -> None:
    """VmHWM starts again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(build: Callable[[], Callable[[], Any]]) -> dict[str, int]:
    """Bytes resident before and after `build`, and the most until the first call is done and while further ones ran.

    The first call belongs to the start: torch.compile works then, and engines make their plans and arenas. What is
    resident after it is what an engine holds between calls.
    """
    reset_peak()
    found = {"imported": resident("VmRSS")}
    run = build()
    found["built"] = resident("VmRSS")
    run()
    found.update(resident=resident("VmRSS"), peak_starting=resident("VmHWM"))
    reset_peak()
    for _ in range(CALLS):
        run()
    found["peak_running"] = resident("VmHWM")
    return found


def step(module: str, spec: Spec, cache: Path, options: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Builds an engine of the races (inference or a training step)."""

    def build() -> Callable[[], Any]:
        runner = importlib.import_module(module).build(spec, cache, **options)
        x = runner.prepare(images(spec))
        return lambda: runner.run(x)

    return build


def perceptual(spec: Spec, cache: Path, options: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Features with frozen weights, and the gradient of their mean square to the images."""

    def build() -> Callable[[], Any]:
        import torch

        from peers import training

        torch.set_num_threads(spec.threads)
        memory = torch.contiguous_format if options.get("layout") == "nchw" else torch.channels_last
        model = training.network(spec, cache, options.get("ours", False), memory).eval().requires_grad_(False)
        call = torch.compile(model, dynamic=False) if options.get("compiled") else model
        x = torch.from_numpy(images(spec)).contiguous(memory_format=memory).requires_grad_()

        def run() -> None:
            x.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.dtype == "bf16"):
                y = call(x)
            y.float().square().mean().backward()
            if x.grad is None or not x.grad.isfinite().all() or not x.grad.any():
                raise ArithmeticError("the gradient to the images is missing, zero or not finite")

        return run

    return build


def main() -> None:
    request = json.loads(sys.argv[1])
    spec, cache, options = Spec(**request["spec"]), Path(request["cache"]), request["options"]
    for package in request["packages"]:
        importlib.import_module(package)
    if request["use"] == "perceptual":
        build = perceptual(spec, cache, options)
    else:
        build = step(request["module"], spec, cache, options)
    print("\n" + json.dumps(measure(build)), flush=True)


if __name__ == "__main__":
    main()
