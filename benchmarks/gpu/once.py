"""A few 3x3 layers of VGG-16 by vggfast alone, each pass twice: what scripts/gpu_session.sh runs under ncu."""

from __future__ import annotations

import argparse

import torch

from gpu import candidates as convs
from gpu import choice

LAYERS = ((64, 64, 224, True), (256, 256, 56, False), (512, 512, 14, True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=choice.DTYPES, default="bf16", help="of all tensors (default bf16)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images (default 32)")
    options = parser.parse_args()
    choice.require_gpu(parser)
    choice.set_precision(options.dtype)
    for cin, cout, size, pool in LAYERS:
        for which in convs.PASSES:
            layer = convs.Layer(convs.Case(cin, cout, size, options.batch, which, pool, options.dtype))
            found = convs.our_forward(layer) if which == "fprop" else convs.our_gradients(layer, which)[0]["vggfast"]
            for _ in range(2):
                found.once()
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
