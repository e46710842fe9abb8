"""The benchmarks on CUDA: what --device cuda runs.

`choice` tells the two sides apart, `races` runs whole networks by way of peers.race, an engine a process; `model`,
`train` and `memory` are the commands, `engines`, `steps` and `jax_engine` build what they compare, `registry` names it.
`conv` measures single layers in one process: `candidates` and `other_ops` build, `measuring` checks and times them.
"""
