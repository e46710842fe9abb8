"""Installs a wheel into empty environments, one for each release of torch, and runs the quick tests there.

    python scripts/try_wheel.py dist/vggfast-*.whl --torch 2.11.0 2.13.0

Without --torch it takes every release that pip can get here and that the wheel allows. torch without CUDA is smaller by
gigabytes; pip finds it where PIP_INDEX_URL or PIP_FIND_LINKS says.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_TESTS = ["tests/ops", "tests/engine", "tests/models", "-n", "auto"]
_TEST_PACKAGES = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")


def problems(wheel: Path) -> list[str]:
    """What a wheel must not have, or must not be."""
    found = []
    if not re.search(r"-manylinux_2_\d+_\w+\.whl$", wheel.name):
        found.append(f"{wheel.name} has no manylinux tag: auditwheel repair gives it one")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    if bundled := [name for name in names if ".libs/" in name]:
        found.append(f"{wheel.name} brings libraries along, perhaps a second OpenMP runtime: {', '.join(bundled)}")
    if not any(re.match(r"vggfast/_C\..*\.so$", name) for name in names):
        found.append(f"{wheel.name} has no compiled module")
    return found


def homeless(table: str) -> list[str]:
    """Symbols that are in no library that a module names, and are not Python's.

    Args:
        table: what `objdump -T` prints of the module.
    """
    found = re.findall(r"^\w+ ( |g|u)[^w\n]* \*UND\*\s+\w+\s+(\S+)\s+(\w+)$", table, re.MULTILINE)
    return [name for _, version, name in found if version == "Base" and not re.match("_?Py", name)]


def undefined(wheel: Path) -> list[str]:
    """The same of what the linker let pass."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as file:
        (module,) = (name for name in file.namelist() if re.match(r"vggfast/_C\..*\.so$", name))
        command = ["objdump", "-T", file.extract(module, folder)]
        names = homeless(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [f"{wheel.name} asks for symbols that are nowhere: {', '.join(names)}"] if names else []


def releases(wheel: Path) -> list[str]:
    """The releases of torch that pip can get and that the wheel allows, the oldest first."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(metadata).decode().splitlines()
    needs = (Requirement(line.partition(":")[2]) for line in lines if line.startswith("Requires-Dist:"))
    allowed = next(need.specifier for need in needs if need.name == "torch" and not need.marker)
    command = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)
    if not match:
        raise SystemExit(f"try_wheel: pip index versions torch must print 'Available versions', got {listed!r}")
    return [version for version in reversed(match[1].split(", ")) if allowed.contains(version)]


def tried(wheel: Path, torch: str, folder: Path, arguments: list[str]) -> str:
    """The last line of the quick tests, run on the wheel in an environment of its own; the tests lie in `folder`."""
    environment = folder / f"torch-{torch}"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={torch}", f"{wheel}[train]", *_TEST_PACKAGES], check=True)
    done = subprocess.run(
        [environment / "bin" / "python", "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-4000:], done.stderr[-2000:])
    return f"{'passed' if done.returncode == 0 else 'FAILED'}: {(done.stdout.splitlines() or ['nothing ran'])[-1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="*", metavar="VERSION", help="releases of torch (default: all that pip finds)")
    parser.add_argument(
        "tests", nargs="*", help="after --: arguments of pytest (default: the tests of ops, engine and models)"
    )
    parsed = parser.parse_args()
    wheel = parsed.wheel.resolve()
    if found := problems(wheel) or undefined(wheel):
        print("\n".join(f"try_wheel: {problem}" for problem in found), file=sys.stderr)
        return 1
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        # Away from the source tree, whose vggfast would come before the wheel's.
        for name in ("tests", "pyproject.toml", "benchmarks", "scripts", "docs", "README.md"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder) / name)
        for version in releases(wheel) if parsed.torch is None else parsed.torch:
            rows[version] = tried(wheel, version, Path(folder), parsed.tests or _TESTS)
    print(f"\n{wheel.name}")
    for version, row in rows.items():
        print(f"torch {version:<14} {row}")
    return 1 if any(row.startswith("FAILED") for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
