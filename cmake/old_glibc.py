"""Writes libraries to link against, so that what is linked here also runs where glibc is older.

A library remembers the version of each symbol of glibc that it was linked with: the newest that the machine's glibc
has. That glibc keeps the older versions, for programs of earlier days. This writes stubs of it that know no version
above the one asked for. CMakeLists.txt calls it for -DVGGFAST_GLIBC=2.28, which `make wheel` asks for.

    python cmake/old_glibc.py 2.28 build/old_glibc
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

_Version = tuple[int, ...]

# Where glibc before 2.34 has what has been in libc.so.6 since: by how the symbol's name begins.
_HOMES = {r"dl(?!_)": "libdl.so.2", r"pthread_": "libpthread.so.0"}
_SYMBOL = re.compile(r"^\w+ (?P<flags>.{7}) \S+\s+\w+\s+\(?GLIBC_(?P<version>2(?:\.\d+)+)\)?\s+(?P<name>\w+)$")


def _number(version: str) -> _Version:
    return tuple(int(part) for part in version.split("."))


def symbols(table: str, newest: str) -> dict[str, tuple[str, bool]]:
    """By symbol its newest version of at most `newest`, and whether it is data; one that came later is not among them.

    Args:
        table: what `objdump -T` prints of a library.
        newest: such as "2.28".
    """
    found: dict[str, tuple[str, bool]] = {}
    for line in table.splitlines():
        match = _SYMBOL.match(line)
        if not match or " *UND*" in line or _number(match["version"]) > _number(newest):
            continue
        before = found.get(match["name"])
        if before is None or _number(before[0]) < _number(match["version"]):
            found[match["name"]] = (match["version"], match["flags"].endswith("O"))
    return found


def by_library(libc: dict[str, tuple[str, bool]]) -> dict[str, dict[str, tuple[str, bool]]]:
    """libc.so.6's symbols by the library that has them before glibc 2.34."""
    parts: dict[str, dict[str, tuple[str, bool]]] = {"libc.so.6": {}, **{home: {} for home in _HOMES.values()}}
    for name, symbol in libc.items():
        home = next((home for start, home in _HOMES.items() if re.match(start, name)), "libc.so.6")
        parts[home][name] = symbol
    return parts


def write_stub(compiler: str, folder: Path, soname: str, parts: dict[str, tuple[str, bool]]) -> Path:
    """Links a library of that name which has the symbols and does nothing."""
    lines = []
    for i, (name, (version, data)) in enumerate(parts.items()):
        kind = "object" if data else "function"
        lines += [f".globl s{i}", f".type s{i}, @{kind}", f"s{i}: .quad 0", f".size s{i}, 8",
                  f".symver s{i}, {name}@@GLIBC_{version}"]  # fmt: skip
    source, script, stub = (folder / f"{soname}{suffix}" for suffix in (".s", ".map", ""))
    source.write_text("\n".join([".data", *lines, '.section .note.GNU-stack,"",%progbits', ""]))
    versions = sorted({version for version, _ in parts.values()}, key=_number)
    script.write_text("".join(f"GLIBC_{version} {{ }};\n" for version in versions) + "HIDDEN { local: s*; };\n")
    command = [compiler, "-shared", "-nostdlib", f"-Wl,-soname,{soname},--version-script,{script}"]
    subprocess.run([*command, "-o", stub, source], check=True)
    return stub


def _of(compiler: str, name: str) -> str:
    """The path that the compiler knows a library by."""
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def _objdump(option: str, library: str) -> str:
    return subprocess.run(["objdump", option, library], check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glibc", help="the oldest glibc that the result runs on, such as 2.28")
    parser.add_argument("folder", type=Path, help="where the libraries go; the linker is given it by -L")
    parser.add_argument("--compiler", default="c++", help="what links (default c++)")
    parsed = parser.parse_args()
    if not re.fullmatch(r"2\.\d+", parsed.glibc):
        parser.error(f"glibc must be a version such as 2.28, got {parsed.glibc!r}")
    parsed.folder.mkdir(parents=True, exist_ok=True)
    headers = _objdump("-p", _of(parsed.compiler, "libc.so.6"))
    loader = re.findall(r"NEEDED +(ld-linux\S+)", headers)  # it has __tls_get_addr
    tables = {
        name: symbols(_objdump("-T", _of(parsed.compiler, name)), parsed.glibc)
        for name in ("libc.so.6", "libm.so.6", *loader)
    }
    libraries = tables | by_library(tables["libc.so.6"])
    stubs = {
        soname: write_stub(parsed.compiler, parsed.folder, soname, parts).resolve()
        for soname, parts in libraries.items()
    }
    rest = " ".join(str(stubs[soname]) for soname in (*_HOMES.values(), *loader))
    # What programs carry of glibc themselves, such as pthread_atfork, is in a library of its own.
    own = _of(parsed.compiler, "libc_nonshared.a")
    (parsed.folder / "libc.so").write_text(f"GROUP ( {stubs['libc.so.6']} {own} AS_NEEDED ( {rest} ) )\n")
    for name in ("libm.so.6", *_HOMES.values()):
        (parsed.folder / f"{name.partition('.so')[0]}.so").write_text(f"GROUP ( {stubs[name]} )\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
