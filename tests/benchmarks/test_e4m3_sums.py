"""benchmarks/e4m3_sums.py: the rule of Hopper's sums, against its definition by whole numbers, and the table."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import e4m3_sums
import pytest
import torch
from e4m3_sums import PROMOTIONS, add_products, hopper_sums
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
E4M3 = torch.float8_e4m3fn
BYTES = st.integers(0, 255).filter(lambda byte: byte & 127 != 127)  # but NaN


def cut_off(value, exponent):
    """Towards zero, to 13 bits below 2^exponent."""
    unit = Fraction(2) ** (exponent - 13)
    return math.trunc(Fraction(value) / unit) * unit


def defined(d, a, b):
    """d + the products of a and b, term by term."""
    terms = [(Fraction(x) * Fraction(y), sum(max(math.frexp(v)[1] - 1, -6) for v in (x, y)))
             for x, y in zip(a, b, strict=True) if x and y]  # fmt: skip
    terms += [(Fraction(d), math.frexp(d)[1] - 1)] if d else []
    if not terms:
        return 0.0
    greatest = max(exponent for _, exponent in terms)
    total = sum(cut_off(value, greatest) for value, _ in terms)
    return float(cut_off(total, math.frexp(float(total))[1] - 1)) if total else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(BYTES, BYTES), min_size=32, max_size=32), st.floats(-(2.0**22), 2.0**22, width=32))
def test_a_wgmma(factors, d):
    d = d if abs(d) > 2.0**-18 else 0.0
    a, b = (torch.tensor(side, dtype=torch.uint8).view(E4M3).float() for side in zip(*factors, strict=True))
    got = add_products(torch.tensor([[d]]), a[None], b[None])
    assert got.item() == defined(d, a.tolist(), b.tolist())


def test_a_long_sum_of_ones():
    """Of equal terms none count any more once the sum is 2^14 of them."""
    ones = torch.ones(1, 32 * 640)
    assert hopper_sums(ones, ones).item() == 2**14
    assert hopper_sums(ones, ones, 512).item() == hopper_sums(ones, ones, 128).item() == 32 * 640


def test_promotion_begins_anew():
    torch.manual_seed(0)
    a, b = (torch.randn(4, 1024).to(E4M3).float() for _ in "ab")
    parts = sum(hopper_sums(a[:, k : k + 512], b[:, k : k + 512]) for k in (0, 512))
    assert torch.equal(hopper_sums(a, b, 512), parts)
    assert torch.equal(hopper_sums(a, b, 1024), hopper_sums(a, b))


def test_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(e4m3_sums, "LAYERS", [(64, 64, 8), (256, 64, 6)])
    path = tmp_path / "sums.json"
    e4m3_sums.main(["--images", "1", "--pixels", "8", "--channels", "16", "--out", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["layer"], row["k"]) == ([256, 64, 6], 9 * 256)
    errors = [row[name]["error"] for name in PROMOTIONS]
    assert row["quantising"] > 10 * errors[0] > 0
    assert errors == sorted(errors, reverse=True)
    assert "256 → 64, 6²" in capsys.readouterr().out


def test_the_ladder_quotes_the_results():
    """docs/gpu-ladder.md says why sums are not promoted: the worst of the results."""
    rows = json.loads(e4m3_sums.RESULTS.read_text())["rows"]
    assert {row["input"] for row in rows} == {"random", "photos"}
    worst = [max(row[name]["error"] for row in rows) for name in ("never", "every 4 stages")]
    quoted = [math.ceil(1e4 * worst[0]), math.floor(1e4 * min(row["quantising"] for row in rows)),
              math.ceil(1e4 * worst[1])]  # fmt: skip
    text = " ".join((ROOT / "docs" / "gpu-ladder.md").read_text().split())
    said = re.search(r"L2 error of at most ([\d.]+), .* had cost ([\d.]+) or more .* at most ([\d.]+)\.", text)
    assert [round(1e4 * float(figure)) for figure in said.groups()] == quoted


@pytest.mark.parametrize("given", [["--weights", "w"], ["--data", "d"]])
def test_weights_and_photos_come_together(given, capsys):
    with pytest.raises(SystemExit):
        e4m3_sums.main(given)
    assert "--weights and --data must be given together" in capsys.readouterr().err
