"""scripts/stage_loops.py: loops in what cuobjdump prints of kernels' code, what is counted there, and the budget."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def stage_loops():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))  # it imports kernel_resources
        specification = importlib.util.spec_from_file_location("stage_loops", SCRIPTS / "stage_loops.py")
        module = importlib.util.module_from_spec(specification)
        patch.setitem(sys.modules, "stage_loops", module)  # dataclasses look there for their module
        specification.loader.exec_module(module)
        yield module


NAME = "_ZN7vggfast4cuda4sm9024conv_fprop_hopper_kernelIfEEvT_"
SHORT = "conv_fprop_hopper_kernel<float>"
needs_filter = pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")

# A kernel as nvcc shapes them: a first stage before the loop of the others, waits that go on out of line, a producer.
KERNEL = """\
start:   S2R R0, SR_TID.X
         BSSY B0, `done`
         @P0 BRA `feed`
tile:    SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait1`
first:   WARPGROUP.ARRIVE
         R2UR UR8, R6
         HGMMA.64x224x16.F32.BF16 R24, gdesc[UR8], R24, !UP0
         HGMMA.64x224x16.F32.BF16 R24, gdesc[UR12], R24, gsb0
stage:   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait2`
next:    WARPGROUP.ARRIVE
         HGMMA.64x224x16.F32.BF16 R24, gdesc[UR8], R24
         HGMMA.64x224x16.F32.BF16 R24, gdesc[UR12], R24, gsb0
         WARPGROUP.DEPBAR.LE gsb0, 0x1
         {release}
         SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [R5+URZ], RZ
         @P2 BRA `stage`
         WARPGROUP.DEPBAR.LE gsb0, 0x0
         R2UR UR8, R6
         MEMBAR.ALL.GPU
         CCTL.IVALL
         @P3 BRA `tile`
         BRA `done`
feed:    SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait3`
load:    {acquire}
         UTMALDG.4D [UR8], [UR16]
         @P0 BRA `feed`
done:    BSYNC B0
         EXIT
wait1:   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait1`
         BRA `first`
wait2:   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait2`
         BRA `next`
wait3:   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
         @!P1 BRA `wait3`
         BRA `load`
"""


def assembled(text: str, name: str = NAME) -> str:
    """As cuobjdump prints it: each instruction's address before it, its bits behind it and in the next line."""
    lines = [line.split(":", 1) if ":" in line.split()[0] else ["", line] for line in text.splitlines()]
    places = {f"`{label}`": f"{16 * i:#x}" for i, (label, _) in enumerate(lines) if label}
    printed = ["\tcode for sm_90a", f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for i, (_, instruction) in enumerate(lines):
        for label, place in places.items():
            instruction = instruction.replace(label, place)
        printed.append(f"        /*{16 * i:04x}*/    {instruction.strip()} ;    /* 0x000ff00000000800 */")
        printed.append("    /* 0x000fe20000000800 */")
    return "\n".join(printed) + "\n"


def kernel(release: str = "NOP", acquire: str = "NOP") -> str:
    return assembled(KERNEL.format(release=release, acquire=acquire))


def test_what_is_counted(stage_loops):
    (code,) = stage_loops.kernels(kernel()).values()
    assert stage_loops.count(code) == {
        "stages": 1,
        "products": 2,
        "instructions": 9 + 3,  # and the wait that goes on out of line
        "r2ur": 0,
        "membar": 0,
        "cctl": 0,
        "membar of loads": 0,
        "cctl of loads": 0,
        "epilogue": 5,
        "epilogue with pool": 5,
        "epilogue with mask": 5,
        "products of kernel": 4,
        "r2ur of kernel": 2,
        "membar of kernel": 1,
        "cctl of kernel": 1,
    }


def test_a_loop_over_tiles_counts_up_to_where_its_products_are_drained(stage_loops):
    unrolled = KERNEL.replace("         @P2 BRA `stage`\n", "")
    (code,) = stage_loops.kernels(assembled(unrolled.format(release="NOP", acquire="NOP"))).values()
    counts = stage_loops.count(code)
    assert (counts["stages"], counts["products"], counts["r2ur"]) == (2, 4, 1)
    assert (counts["membar"], counts["membar of kernel"]) == (0, 1)


def test_ways_through_an_epilogue(stage_loops):
    """It may pool, which is longer, and write a mask before it stores, in a loop, which counts once."""
    epilogue = """\
         @P4 BRA `pool`
         @P5 BRA `bits`
store:   UTMASTG.2D [UR12], [UR8]
         @P3 BRA `tile`
         BRA `done`
bits:    SHFL.BFLY PT, R4, R5, 0x10, 0x1f
         STG.E.U8 [R2], R4
         @P6 BRA `bits`
         BRA `store`
pool:    FMNMX R4, R5, R6, !PT
         FMNMX R4, R4, R7, !PT
         UTMASTG.4D [UR12], [UR8]
         @P3 BRA `tile`
         BRA `done`
"""
    start, end = KERNEL.split("         @P3 BRA `tile`\n         BRA `done`\n")
    text = (start + epilogue + end).format(release="NOP", acquire="NOP")
    (code,) = stage_loops.kernels(assembled(text)).values()
    counts = stage_loops.count(code)
    drained = 4  # DEPBAR to CCTL
    assert counts["epilogue"] == drained + 4
    assert counts["epilogue with pool"] == drained + 5
    assert counts["epilogue with mask"] == drained + 8


def test_kernels_without_products_do_not_count(stage_loops):
    text = assembled("start: S2R R0, SR_TID.X\n MEMBAR.ALL.GPU\n EXIT\n")
    assert stage_loops.kernels(text)[NAME][1].text == "MEMBAR.ALL.GPU"
    assert stage_loops.counted([text]) == {}


@needs_filter
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"release": "@!P0 MEMBAR.ALL.GPU"}, "its loop that multiplies must have no MEMBAR.ALL.GPU, got 1"),
        ({"release": "CCTL.IVALL"}, "its loop that multiplies must have no CCTL.IVALL, got 1"),
        ({"acquire": "CCTL.IVALL"}, "its loop that loads must have no CCTL.IVALL, got 1"),
        ({"acquire": "MEMBAR.ALL.GPU"}, "its loop that loads must have no MEMBAR.ALL.GPU, got 1"),
        ({"release": "R2UR UR9, R7\n R2UR UR8, R6"},
         "its loop that multiplies must have at most 0.5 R2UR a product, got 2 for 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_itself(stage_loops, change, wrong):
    found = stage_loops.counted([kernel(**change)])
    assert stage_loops.compare(found, found) == [f"{SHORT}: {wrong}"]
    clean = stage_loops.counted([kernel()])
    assert stage_loops.compare(clean, clean) == []


@needs_filter
def test_a_budget_limits_each_count(stage_loops):
    found = stage_loops.counted([kernel()])
    tight = {SHORT: {**found[SHORT], "instructions": 11, "r2ur of kernel": 1}, "old": found[SHORT]}
    assert stage_loops.compare(found, tight) == [
        f"{SHORT}: instructions must be at most 11, got 12",
        f"{SHORT}: r2ur of kernel must be at most 1, got 2",
        "old: in the budget, but not built: --write removes it",
    ]
    assert stage_loops.compare(found, {}) == [f"{SHORT}: not in the budget: --write adds it"]


@needs_filter
def test_the_command(stage_loops, tmp_path, monkeypatch, capsys):
    budget, out = tmp_path / "resources.json", tmp_path / "found.json"
    budget.write_text('{"nvcc": "13.0.88", "kernels": {"k": {}}}')
    text = kernel()
    monkeypatch.setattr(stage_loops, "disassembled", lambda path: text)
    monkeypatch.setattr(stage_loops, "disassemblers", lambda: ["/a/cuobjdump", "/b/nvdisasm"])
    monkeypatch.setattr(stage_loops, "nvcc_version", lambda: "13.0.88")
    base = ["--object", "x.o", "--budget", str(budget)]
    assert stage_loops.main(base) == 1
    assert "not in the budget" in capsys.readouterr().out
    assert stage_loops.main([*base, "--write", "--out", str(out), "--commit", "abc"]) == 0
    said = capsys.readouterr().out
    assert "disassembled by /a/cuobjdump and /b/nvdisasm" in said
    assert "the loops of 1 kernels are within resources.json" in said
    written = json.loads(budget.read_text())
    assert written["kernels"] == {"k": {}}
    assert json.loads(out.read_text()) == {"commit": "abc", "nvcc": "13.0.88", "kernels": written["stage_loops"]}
    text = kernel(release="MEMBAR.ALL.GPU")
    assert stage_loops.main(base) == 1
    assert "must have no MEMBAR.ALL.GPU, got 1" in capsys.readouterr().out


def test_errors_say_what_to_do(stage_loops, tmp_path, capsys):
    assert stage_loops.main(["--build", str(tmp_path)]) == 2
    assert "run.cu.o was not found: build there with CUDA, for sm_90a among others" in capsys.readouterr().err
    assert stage_loops.main(["--object", __file__, "--out", "x"]) == 2
    assert capsys.readouterr().err == "stage_loops: --out and --commit go together\n"


def test_cudas_tools_are_found_where_they_lie(stage_loops, tmp_path, monkeypatch, capsys):
    """On PATH first, as nvcc's own are, then in pip's packages; nvdisasm by itself, for cuobjdump calls it."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages" / "nvidia"
    own, pips = tmp_path / "cuda", packages / "cu13" / "bin"
    monkeypatch.setenv("PATH", str(own))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for folder, name in ((own, "cuobjdump"), (pips, "nvdisasm"), (pips, "cuobjdump")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('#!/bin/sh\necho "$0 $@"\n')
        (folder / name).chmod(0o755)
    assert stage_loops.disassemblers() == [str(own / "cuobjdump"), str(pips / "nvdisasm")]
    assert stage_loops.disassembled(Path(__file__)).startswith(f"{own / 'cuobjdump'} --dump-sass")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert stage_loops.main(["--object", __file__]) == 2
    expected = "cuobjdump was not found: put CUDA's bin folder on PATH, or pip install nvidia-cuda-cuobjdump"
    assert capsys.readouterr().err == f"stage_loops: {expected}\n"


def test_the_committed_budget_is_clean(stage_loops):
    """What is wrong in itself must not come in by --write."""
    found = json.loads(stage_loops.BUDGET.read_text())["stage_loops"]
    assert found
    assert stage_loops.compare(found, found) == []
