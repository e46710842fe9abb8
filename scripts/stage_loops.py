#!/usr/bin/env python3
"""What stands between the products of each Hopper kernel, in the machine code that nvcc made, against a budget.

It reads the sm_90a code of a build's objects (the sources that CMakeLists.txt lists as sm90_sources), or of the files
given as --object, by cuobjdump, and needs no GPU. Of each kernel of wgmma it looks at two kinds of loops: those that
multiply (around HGMMA and its like, up to where the products are drained), which go through one stage of a ring for
each group of products, and those that load (around UTMALDG). In either, MEMBAR.ALL.GPU and CCTL.IVALL, a barrier of all
memory and the emptying of L1, are faults: mbarriers at a cluster's scope bring them. R2UR moves a register to where a
product takes its descriptor from, and is to be rare; it is where the compiler knows the descriptor to be the whole
warp's. Of epilogues it counts the instructions that a warp issues from a tile's last product on until it goes back for
the next tile: the most on the way to a store by TMA, without a mask, of the store where that is least; the most without
a mask, which is where outputs are pooled; the most of all, ReLU's mask and dgrad's one after the other, though no call
has both. A loop counts once. The counts of each kernel, its loops' and its whole code's, are limited by the budget,
"stage_loops" in csrc/cuda/resources.json. The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_resources import (
    BUDGET,
    BUILD,
    ROOT,
    MissingError,
    demangled,
    nvcc_version,
    run,
    short,
    sources,
    tool,
    tools_path,
)

ARCH = "sm_90a"
PRODUCT = r"\b[HQI]GMMA\b"
GROUP = r"\b[HQI]GMMA\b.*\bgsb0\b"  # the last product of a group
LOAD, STORE = r"\bUTMALDG\b", r"\bUTMASTG\b"
DRAIN = r"\bWARPGROUP\.DEPBAR\.LE gsb0, 0x0"
R2UR = r"\bR2UR\b"
MASK = r"\bSHFL\.BFLY\b"  # transposes bits
COSTLY = {"membar": r"\bMEMBAR\.ALL\.GPU\b", "cctl": r"\bCCTL\.IVALL\b"}
MOST_R2UR = 0.5  # a product

Counts = dict[str, int]


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str

    def targets(self) -> list[int]:
        """The addresses that it names as places in the code."""
        return [int(hex_, 16) for hex_ in re.findall(r"[ ,(]0x([0-9a-f]+)", self.text)]


Code = list[Instruction]


# ---- reading --------------------------------------------------------------------------------------------------------


def kernels(text: str) -> dict[str, Code]:
    """The code of each function that `cuobjdump -sass` printed, by mangled name."""
    found: dict[str, Code] = {}
    code: Code = []
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\S+)", line):
            code = found[function[1]] = []
        elif instruction := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", line):
            code.append(Instruction(int(instruction[1], 16), instruction[2]))
    return found


# ---- loops ----------------------------------------------------------------------------------------------------------


def successors(code: Code) -> list[list[int]]:
    """For each instruction, the numbers of those that may follow it. BSYNC goes to where the BSSY before it says."""
    at = {instruction.address: i for i, instruction in enumerate(code)}
    meets: dict[str, int] = {}  # by convergence barrier
    result = []
    for i, instruction in enumerate(code):
        words = instruction.text.split()
        conditional = words[0].startswith("@")
        name, *operands = words[1:] if conditional else words
        name = name.split(".")[0]
        follow = [i + 1] if i + 1 < len(code) else []
        if name == "BSSY":
            meets[operands[0].rstrip(",")] = at[instruction.targets()[-1]]
        if name == "BSYNC":
            follow = [meets[operands[0]]]
        elif name in ("EXIT", "RET"):
            follow = follow if conditional else []
        elif name == "BRA":
            # A uniform predicate may stand before the target, as BRA.DIV's mask does.
            conditional = conditional or len(operands) > 1
            follow = [at[instruction.targets()[-1]], *(follow if conditional else [])]
        result.append(follow)
    return result


def loops(follow: list[list[int]]) -> list[set[int]]:
    """The natural loops, as sets of instructions. Those of one head are one."""
    before: list[list[int]] = [[] for _ in follow]
    for i, others in enumerate(follow):
        for other in others:
            before[other].append(i)
    dominator = dominators(follow, before)
    bodies: dict[int, set[int]] = defaultdict(set)
    for i, others in enumerate(follow):
        for head in others:
            if i in dominator and is_dominated(i, head, dominator):
                body, open_ = bodies[head] | {head}, [i]
                while open_:
                    at = open_.pop()
                    if at not in body:
                        body.add(at)
                        open_ += [other for other in before[at] if other in dominator]
                bodies[head] = body
    return list(bodies.values())


def dominators(follow: list[list[int]], before: list[list[int]]) -> dict[int, int]:
    """The immediate dominator of each instruction that can be reached, as Cooper, Harvey and Kennedy find it."""
    order: list[int] = []  # reverse postorder
    seen, stack = {0}, [(0, iter(follow[0]))]
    while stack:
        at, rest = stack[-1]
        following = next((other for other in rest if other not in seen), None)
        if following is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(follow[following])))
    order.reverse()
    number = {at: i for i, at in enumerate(order)}
    dominator = {0: 0}
    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            known = [other for other in before[at] if other in dominator]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    if number[new] > number[other]:
                        new = dominator[new]
                    else:
                        other = dominator[other]
            changed = changed or dominator.get(at) != new
            dominator[at] = new
    return dominator


def is_dominated(at: int, by: int, dominator: dict[int, int]) -> bool:
    while at not in (by, dominator[at]):
        at = dominator[at]
    return at == by


def innermost(code: Code, pattern: str, found: list[set[int]]) -> list[set[int]]:
    """The loops that are the innermost one of an instruction that matches."""
    result: list[set[int]] = []
    for i, instruction in enumerate(code):
        if re.search(pattern, instruction.text) and (holding := [loop for loop in found if i in loop]):
            loop = min(holding, key=len)
            if loop not in result:
                result.append(loop)
    return result


def until_drained(code: Code, loop: set[int]) -> set[int]:
    """Without what follows once products have been drained: a loop over tiles has its epilogue there."""
    drains = [i for i in loop if re.search(DRAIN, code[i].text)]
    return {i for i in loop if not drains or i <= max(drains)}


def longest(follow: list[list[int]], start: int, ends: set[int], closed: set[int]) -> int:
    """The most instructions from `start` on until one of `ends`, or the code's end, without going back and past those
    that are closed."""
    most: dict[int, int] = {}  # by instruction; -1: no way leads from it to an end
    open_, stack = {start}, [(start, iter(follow[start]))]
    while stack:
        at, rest = stack[-1]
        other = next((o for o in rest if not any(o in known for known in (most, open_, ends, closed))), None)
        if other is not None:
            open_.add(other)
            stack.append((other, iter(follow[other])))
            continue
        ways = [0 if o in ends else most[o] for o in follow[at] if o in ends or most.get(o, -1) >= 0]
        most[at] = 1 + max(ways) if ways else -1 if follow[at] else 1
        open_.remove(at)
        stack.pop()
    return most[start]


# ---- counting -------------------------------------------------------------------------------------------------------


def count(code: Code) -> Counts | None:
    """What is counted of a kernel; None where it has no products."""
    if not any(re.search(PRODUCT, instruction.text) for instruction in code):
        return None
    follow = successors(code)
    found = loops(follow)
    multiply, load = innermost(code, PRODUCT, found), innermost(code, LOAD, found)
    # The first stage of a tile may stand before the loop of the others, in a loop around it.
    multiply = [until_drained(code, loop) for loop in multiply if not any(other < loop for other in multiply)]

    everything = [set(range(len(code)))]

    def number(where: list[set[int]], pattern: str) -> int:
        return sum(bool(re.search(pattern, code[i].text)) for i in set().union(*where))

    return {
        "stages": number(multiply, GROUP),
        "products": number(multiply, PRODUCT),
        "instructions": number(multiply, ""),
        "r2ur": number(multiply, R2UR),
        **{name: number(multiply, what) for name, what in COSTLY.items()},
        **{f"{name} of loads": number(load, what) for name, what in COSTLY.items()},
        **epilogues(code, follow),
        "products of kernel": number(everything, PRODUCT),
        "r2ur of kernel": number(everything, R2UR),
        **{f"{name} of kernel": number(everything, what) for name, what in COSTLY.items()},
    }


def epilogues(code: Code, follow: list[list[int]]) -> Counts:
    """Of each kind; a kernel without stores by TMA has none of its own for the first."""
    drained, *_ = reversed(matching(code, DRAIN))
    before, mask = set(range(drained)), set(matching(code, MASK))
    last = {i for i, others in enumerate(follow) if not others}
    most, unmasked = (longest(follow, drained, before, closed) for closed in (set(), mask))
    stored = [
        to_store + longest(follow, store, before, mask)
        for store in matching(code, STORE)
        if (to_store := longest(follow, drained, {store}, before | mask | last)) >= 0
    ]
    return {"epilogue": min(stored, default=unmasked), "epilogue with pool": unmasked, "epilogue with mask": most}


def matching(code: Code, pattern: str) -> list[int]:
    return [i for i, instruction in enumerate(code) if re.search(pattern, instruction.text)]


def counted(texts: Sequence[str]) -> dict[str, Counts]:
    """The counts of each kernel that has products, by short name, of what cuobjdump printed."""
    found = {name: code for text in texts for name, code in kernels(text).items()}
    result = {}
    for name, text in zip(found, demangled(list(found)), strict=True):
        if counts := count(found[name]):
            result[short(text).replace("sm90::", "")] = counts
    return dict(sorted(result.items()))


# ---- comparing ------------------------------------------------------------------------------------------------------


def compare(found: dict[str, Counts], budget: dict[str, Counts]) -> list[str]:
    """A line for each count that is wrong in itself or above its budget, and for each kernel that only one has."""
    lines = []
    for name, counts in found.items():
        for what, instruction in COSTLY.items():
            for where, key in (("multiplies", what), ("loads", f"{what} of loads")):
                if counts[key]:
                    lines.append(f"{name}: its loop that {where} must have no {plain(instruction)}, got {counts[key]}")
        if counts["r2ur"] > MOST_R2UR * counts["products"]:
            lines.append(
                f"{name}: its loop that multiplies must have at most {MOST_R2UR} R2UR a product, "
                f"got {counts['r2ur']} for {counts['products']}"
            )
        allowed = budget.get(name)
        if allowed is None:
            lines.append(f"{name}: not in the budget: --write adds it")
            continue
        for what, number in counts.items():
            if number > allowed[what]:
                lines.append(f"{name}: {what} must be at most {allowed[what]}, got {number}")
    return lines + [f"{name}: in the budget, but not built: --write removes it" for name in budget if name not in found]


def plain(pattern: str) -> str:
    """The instruction that a pattern stands for."""
    return pattern.replace("\\b", "").replace("\\.", ".")


# ---- the tools ------------------------------------------------------------------------------------------------------


def disassemblers() -> list[str]:
    """cuobjdump, and nvdisasm, which it calls."""
    return [tool(name, f", or pip install nvidia-cuda-{name}") for name in ("cuobjdump", "nvdisasm")]


def disassembled(path: Path) -> str:
    """What cuobjdump says of a file's code."""
    if not path.is_file():
        raise MissingError(f"{path} was not found: build there with CUDA, for sm_90a among others")
    command = [disassemblers()[0], "--dump-sass", "--gpu-architecture", ARCH, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": tools_path()})
    if done.returncode:
        raise MissingError(f"cuobjdump ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def objects(build: Path) -> list[Path]:
    listed = sources((ROOT / "CMakeLists.txt").read_text(), "sm90_sources")
    return [build / "CMakeFiles" / "vggfast_sm90.dir" / f"{source}.o" for source in listed]


# ---- the command ----------------------------------------------------------------------------------------------------


def show(found: dict[str, Counts]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "Loops that multiply: a stage's instructions; of loads in brackets. Epilogues: alone, with pool, mask"
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(("kernel", "instructions", "products", "R2UR", "MEMBAR", "CCTL", "epilogue")):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for name, counts in found.items():
        each = [f"{counts[what] / counts['stages']:.1f}" for what in ("instructions", "products", "r2ur")]
        costly = [f"{counts[what] / counts['stages']:.1f} ({counts[f'{what} of loads']})" for what in COSTLY]
        epilogue = (str(counts[f"epilogue{more}"]) for more in ("", " with pool", " with mask"))
        table.add_row(name, *each, *costly, ", ".join(epilogue))
    console = Console(markup=False, highlight=False)
    Console(width=max(console.width, 130), markup=False, highlight=False).print(table)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--build", type=Path, default=BUILD, metavar="DIR",
                      help="CMake's folder of a build with CUDA (default %(default)s)")  # fmt: skip
    made.add_argument("--object", type=Path, nargs="+", metavar="FILE", help="read these built files instead")
    made.add_argument("--budget", type=Path, default=BUDGET, metavar="FILE", help="JSON (default %(default)s)")
    made.add_argument("--write", action="store_true", help="write what was found as the new budget")
    made.add_argument("--out", type=Path, metavar="FILE", help="write what was found to this file, too")
    made.add_argument("--commit", help="of the sources, to be named in --out")
    return made


def report(options: argparse.Namespace) -> int:
    """Prints the table and what is wrong; returns the exit status."""
    if bool(options.out) != bool(options.commit):
        raise MissingError("--out and --commit go together")
    found = counted([disassembled(path) for path in options.object or objects(options.build)])
    if not found:
        raise MissingError(f"no kernel with products was found in {options.object or options.build}")
    show(found)
    print(f"disassembled by {' and '.join(disassemblers())}")
    if options.out:
        made = {"commit": options.commit, "nvcc": nvcc_version(), "kernels": found}
        options.out.write_text(json.dumps(made, indent=1) + "\n")
    budget = json.loads(options.budget.read_text())
    if options.write:
        budget["stage_loops"] = found
        options.budget.write_text(json.dumps(budget, indent=1) + "\n")
    wrong = compare(found, budget.get("stage_loops", {}))
    for line in wrong:
        print(line)
    if not wrong:
        print(f"the loops of {len(found)} kernels are within {options.budget.name}")
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    return run("stage_loops", report, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
