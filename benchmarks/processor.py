"""Which class of processor this is: results carry it in their names."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

# (family, first and last model, first and last stepping, class), as Linux' own tables have them.
INTEL = (
    (6, 0x55, 0x55, 0, 4, "skx"), (6, 0x55, 0x55, 5, 9, "clx"), (6, 0x55, 0x55, 10, 15, "cpx"),
    (6, 0x6A, 0x6A, 0, 15, "icx"), (6, 0x6C, 0x6C, 0, 15, "icx"), (6, 0x8F, 0x8F, 0, 15, "spr"),
    (6, 0xCF, 0xCF, 0, 15, "emr"), (6, 0xAD, 0xAE, 0, 15, "gnr"), (6, 0xAF, 0xAF, 0, 15, "srf"),
)  # fmt: skip
AMD = (
    (0x17, 0x00, 0x2F, 0, 15, "zen1"), (0x17, 0x30, 0xAF, 0, 15, "zen2"),
    (0x19, 0x00, 0x0F, 0, 15, "zen3"), (0x19, 0x20, 0x5F, 0, 15, "zen3"),
    (0x19, 0x10, 0x1F, 0, 15, "zen4"), (0x19, 0x60, 0xAF, 0, 15, "zen4"),
    (0x1A, 0x00, 0x4F, 0, 15, "zen5"), (0x1A, 0x60, 0x7F, 0, 15, "zen5"),
)  # fmt: skip
VENDORS = {"GenuineIntel": ("intel", INTEL), "AuthenticAMD": ("amd", AMD)}


def first_processor(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What Linux says of the first processor; nothing on other systems."""
    if not path.exists():
        return {}
    block = path.read_text().strip().split("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}


def processor_class(said: Mapping[str, str]) -> str:
    """The class, such as "zen4", "spr" (Sapphire Rapids), "emr" or "gnr".

    One that the tables do not have is called by its numbers ("intel-6-221"), so that it never passes for another; where
    the system says none (aarch64, macOS), by its architecture ("aarch64").
    """
    try:
        family, model, stepping = (int(said[name]) for name in ("cpu family", "model", "stepping"))
    except (KeyError, ValueError):
        return platform.machine().lower()
    vendor, table = VENDORS.get(said.get("vendor_id", ""), (said.get("vendor_id", "unknown").lower(), ()))
    for known, first, last, low, high, name in table:
        if family == known and first <= model <= last and low <= stepping <= high:
            return name
    return f"{vendor}-{family}-{model}"


def file_name(kind: str) -> str:
    """Of a result of this machine: "model-cpu" is in "model-cpu-zen4.json" on a Zen 4."""
    return f"{kind}-{processor_class(first_processor())}.json"
