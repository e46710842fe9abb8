#!/usr/bin/env python3
"""What each CUDA kernel takes: registers, static shared memory, stack, spills, by architecture, against a budget.

Without --object it reads what ptxas said when a build's folder was filled: cmake/keep_ptxas.sh keeps that beside each
object, of the sources that CMakeLists.txt lists as cuda_sources and sm90_sources. With --object it reads a built
library, object or module by cuobjdump, which knows no spills: there they show as stack. Neither takes a GPU. A kernel
above its line in the budget, or without one, and any spill is named, and the exit status is 1; so is what ptxas says of
products that it serialises (C7510, C7511) and of setmaxnreg that it ignores (C7508).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ROOT / "csrc" / "cuda" / "resources.json"
BUILD = ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"  # setup.py's
LISTS = {"cuda_sources": "vggfast_core", "sm90_sources": "vggfast_sm90"}  # list and target in CMakeLists.txt
# From sm_90 on a block's first KiB of shared memory is the system's: cuobjdump counts it, ptxas does not.
SYSTEM_SHARED = 1024
WARNINGS = re.compile(r"\(?(C7508|C7510|C7511)\)?\b")
COUNTED = ("registers", "shared", "stack")  # what the budget limits; of spills there are to be none


class MissingError(Exception):
    """Something the report needs is not here; the text says what."""


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture; bytes but for the registers. `spills` is None where nobody knows them."""

    registers: int
    shared: int
    stack: int
    spills: int | None = None

    def largest(self, other: Resources) -> Resources:
        spills = None if None in (self.spills, other.spills) else max(self.spills, other.spills)
        return Resources(*(max(getattr(self, name), getattr(other, name)) for name in COUNTED), spills)


Found = dict[tuple[str, str], Resources]  # by (kernel's mangled name, architecture)


# ---- reading --------------------------------------------------------------------------------------------------------


def from_ptxas(text: str) -> Found:
    """What `nvcc -Xptxas -v` printed."""
    found: Found = {}
    name = arch = about = ""
    stack = spills = 0
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name, arch = entry.groups()
            stack = spills = 0
        elif properties := re.search(r"Function properties for (\S+)", line):
            about = properties[1]
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if about == name:
                stack = int(frame[1])
                spills = int(frame[2]) + int(frame[3])
        elif name and (used := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name, arch] = Resources(int(used[1]), int(shared[1]) if shared else 0, stack, spills)
            name = ""
    return found


def from_cuobjdump(text: str) -> Found:
    """What `cuobjdump --dump-resource-usage` printed."""
    found: Found = {}
    arch = name = ""
    for line in text.splitlines():
        if match := re.match(r"\s*arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif name and "REG:" in line:
            sizes = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            number = re.search(r"\d+", arch)
            system = SYSTEM_SHARED if number and int(number[0]) >= 90 else 0
            found[name, arch] = Resources(
                sizes["REG"], max(0, sizes["SHARED"] - system), sizes["STACK"] + sizes["LOCAL"]
            )
            name = ""
    return found


def warnings(text: str) -> list[str]:
    """The lines in which ptxas says that it serialises products or ignores setmaxnreg."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if WARNINGS.search(line)))


# ---- names ----------------------------------------------------------------------------------------------------------


def short(name: str) -> str:
    """A demangled kernel's name and template arguments, without what all of ours share, nor its parameters."""
    for noise in ("(anonymous namespace)::", "vggfast::cuda::", "vggfast::"):
        name = name.replace(noise, "")
    name = name.removeprefix("void ")
    depth = 0
    for at in range(len(name) - 1, -1, -1) if name.endswith(")") else ():
        depth += {")": 1, "(": -1}.get(name[at], 0)
        if depth == 0:
            return name[:at]
    return name


def demangled(names: Sequence[str]) -> list[str]:
    """By binutils' c++filt, which gives the same text everywhere: cu++filt writes template arguments differently."""
    tool = shutil.which("c++filt")
    if tool is None:
        raise MissingError("c++filt was not found: install binutils")
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def named(found: Found) -> Found:
    """`found` by short names; of kernels that share one (in two sources) the most of each counts."""
    result: Found = {}
    keys = list(found)
    for (mangled, arch), text in zip(keys, demangled([name for name, _ in keys]), strict=True):
        resources, key = found[mangled, arch], (short(text), arch)
        result[key] = result[key].largest(resources) if key in result else resources
    return dict(sorted(result.items()))


# ---- comparing ------------------------------------------------------------------------------------------------------


def compare(found: Found, budget: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """A line for each kernel that takes more than its budget, spills, or is in one of the two alone."""
    lines = []
    for (name, arch), resources in found.items():
        if resources.spills:
            lines.append(f"{name}, {arch}: spills must be 0 bytes, got {resources.spills}")
        allowed = budget.get(name, {}).get(arch)
        if allowed is None:
            lines.append(f"{name}, {arch}: not in the budget: --write adds it")
            continue
        for what in COUNTED:
            if getattr(resources, what) > allowed[what]:
                lines.append(f"{name}, {arch}: {what} must be at most {allowed[what]}, got {getattr(resources, what)}")
    archs = {arch for _, arch in found}
    gone = [(name, arch) for name in budget for arch in budget[name] if arch in archs and (name, arch) not in found]
    return lines + [f"{name}, {arch}: in the budget, but not built: --write removes it" for name, arch in gone]


def as_budget(found: Found, old: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, dict[str, int]]]:
    """A budget of what was found; of the old one, what it says of architectures that were not looked at stays."""
    archs = {arch for _, arch in found}
    made: dict[str, dict[str, dict[str, int]]] = {}
    for name in old:
        if kept := {arch: sizes for arch, sizes in old[name].items() if arch not in archs}:
            made[name] = kept
    for (name, arch), resources in found.items():
        made.setdefault(name, {})[arch] = {what: getattr(resources, what) for what in COUNTED}
    return {name: dict(sorted(made[name].items())) for name in sorted(made)}


# ---- the tools ------------------------------------------------------------------------------------------------------


def sources(text: str, name: str) -> list[str]:
    """The list of that name in CMakeLists.txt."""
    match = re.search(rf"set\({name}\s+([^)]*)\)", text)
    if match is None:
        raise MissingError(f"CMakeLists.txt has no set({name} ...)")
    return match[1].split()


def tools_path() -> str:
    """PATH, and where CUDA's tools lie beside it: pip's packages put them into the environment, its installer there."""
    packages = map(str, Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin"))
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *packages, "/usr/local/cuda/bin"])


def tool(name: str, instead: str) -> str:
    path = shutil.which(name, path=tools_path())
    if path is None:
        raise MissingError(f"{name} was not found: put CUDA's bin folder on PATH{instead}")
    return path


def kept(build: Path) -> str:
    """What ptxas said of every source when `build`, CMake's folder, was filled."""
    text = (ROOT / "CMakeLists.txt").read_text()
    said = []
    for name, target in LISTS.items():
        for source in sources(text, name):
            log = build / "CMakeFiles" / f"{target}.dir" / f"{source}.o.ptxas"
            if not log.is_file():
                raise MissingError(f"--build is {build}: it has no {log.relative_to(build)}: build there with CUDA")
            said.append(log.read_text())
    return "\n".join(said)


def dumped(path: Path) -> str:
    """What a built file says of its kernels."""
    if not path.is_file():
        raise MissingError(f"--object must be a file, got {path}")
    dump = tool("cuobjdump", ", or leave --object out")
    done = subprocess.run([dump, "--dump-resource-usage", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise MissingError(f"cuobjdump ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def nvcc_version() -> str:
    try:
        text = subprocess.run([tool("nvcc", ""), "--version"], capture_output=True, text=True)
    except MissingError:
        return "unknown"
    match = re.search(r"release [\d.]+, V([\d.]+)", text.stdout)
    return match[1] if match else "unknown"


# ---- the command ----------------------------------------------------------------------------------------------------


def show(found: Found, budget: dict[str, dict[str, dict[str, int]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Kernels: what they take, and in brackets at most; bytes", title_justify="left")
    for i, column in enumerate(("kernel", "arch", "registers", "static shared", "stack", "spills")):
        table.add_column(column, justify="right" if i > 1 else "left", overflow="fold")
    for (name, arch), resources in found.items():
        allowed = budget.get(name, {}).get(arch, {})
        cells = [f"{getattr(resources, what)} ({allowed.get(what, '-')})" for what in COUNTED]
        table.add_row(name, arch, *cells, "?" if resources.spills is None else str(resources.spills))
    console = Console(markup=False, highlight=False)
    Console(width=max(console.width, 130), markup=False, highlight=False).print(table)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--build", type=Path, default=BUILD, metavar="DIR",
                      help="CMake's folder of a build with CUDA (default %(default)s)")  # fmt: skip
    made.add_argument("--object", type=Path, metavar="FILE", help="read this built file by cuobjdump instead")
    made.add_argument("--log", type=Path, metavar="FILE", help="a build's output, to look there for such warnings too")
    made.add_argument("--budget", type=Path, default=BUDGET, metavar="FILE", help="JSON (default %(default)s)")
    made.add_argument("--write", action="store_true", help="write what was found as the new budget")
    return made


def report(options: argparse.Namespace) -> int:
    """Prints the table and what is wrong; returns the exit status."""
    text = dumped(options.object) if options.object else kept(options.build)
    found = named(from_cuobjdump(text) if options.object else from_ptxas(text))
    if not found:
        raise MissingError(f"no kernel was found in {options.object or options.build}")
    said = text + ("\n" + options.log.read_text() if options.log else "")
    old = json.loads(options.budget.read_text()) if options.budget.exists() else {"nvcc": "", "kernels": {}}
    version = nvcc_version()
    if options.write:
        old = {**old, "nvcc": version, "kernels": as_budget(found, old["kernels"])}
        options.budget.write_text(json.dumps(old, indent=1) + "\n")
    show(found, old["kernels"])
    wrong = compare(found, old["kernels"]) + [f"ptxas: {line}" for line in warnings(said)]
    for line in wrong:
        print(line)
    if wrong and old["nvcc"] not in ("", version):
        print(f"the budget was written with nvcc {old['nvcc']}; this is {version}")
    if not wrong:
        print(f"{len(found)} kernels are within {options.budget.name}")
    return 1 if wrong else 0


def run(name: str, report: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """The exit status of command `name`: what its report returns, or 2 where something is missing, and says so."""
    try:
        return report(options)
    except MissingError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    return run("kernel_resources", report, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
