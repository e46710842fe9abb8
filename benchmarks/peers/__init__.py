"""The engines that vggfast is measured against, each behind one face and in a process of its own.

`registry` names them, `engine_*` build them, `worker` is the child process, `race` the parent that lets them take
turns, `network` what all of them are given, `report` the tables and plots.
"""
