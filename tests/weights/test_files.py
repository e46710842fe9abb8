"""Weight files: what they hold, how they are written, what is refused."""

import json

import pytest
import torch

import vggfast
from vggfast.io import write_atomically
from vggfast.weights import load_model, read_state_dict, save_model


def _small(**changes):
    return vggfast.VGG("A", **{"num_classes": 3, "width": 0.1, "hidden": 8, "pool_size": 1, **changes})


@pytest.mark.parametrize("head", ["linear", "conv", "none"])
def test_round_trip(tmp_path, head):
    model = _small(head=head)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a", "b", "c"]})
    loaded, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a", "b", "c"]}
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_pth_of_a_state_dict(tmp_path):
    model = _small()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    assert torch.equal(read_state_dict(tmp_path / "m.pth")["features.0.weight"], model.features[0].weight)
    with pytest.raises(ValueError, match="weights but not the network's arguments"):
        load_model(tmp_path / "m.pth")


def test_vgg16_takes_a_file_and_its_number_of_classes(tmp_path):
    with torch.device("meta"):
        expected = vggfast.VGG11(num_classes=7, init=None).state_dict()
    state = {name: torch.full(tensor.shape, 0.5, dtype=torch.float32) for name, tensor in expected.items()}
    torch.save(state, tmp_path / "m.pth")
    model = vggfast.vgg11(weights=tmp_path / "m.pth")
    assert model.classifier[6].weight.shape == (7, 4096)
    assert model.features[0].weight.flatten()[0] == 0.5


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"x": Bomb()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth is not a weight file that can be read"):
        read_state_dict(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_garbage_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"garbage" * 100)
    with pytest.raises(ValueError, match=f"{name} is not a weight file that can be read"):
        read_state_dict(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no such weight file"):
        vggfast.vgg16(weights=tmp_path / "nothing.pth")


def test_weights_of_another_network(tmp_path):
    model = _small()
    save_model(model, tmp_path / "m.safetensors")
    from safetensors.torch import load_file, save_file

    other = json.dumps({**model.arguments, "config": "B"})
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "b.safetensors", {"vggfast": other})
    with pytest.raises(ValueError, match=r"b\.safetensors does not hold the network that it names"):
        load_model(tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind", ["save_model", "torch.save"])
def test_full_disk(tmp_path, small_disk, kind):
    path = small_disk / "m.safetensors"
    write = {
        "save_model": lambda: save_model(_small(hidden=2048), path),
        "torch.save": lambda: write_atomically(path, lambda temporary: torch.save(torch.zeros(1 << 22), temporary)),
    }[kind]
    with pytest.raises(OSError, match=r"m\.safetensors could not be written"):
        write()
    assert list(small_disk.iterdir()) == []


def test_a_fine_tuned_last_layer_is_saved_with_its_classes(tmp_path):
    model = _small(num_classes=10)
    model.classifier[6] = torch.nn.Linear(8, 3)
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors")[0].arguments["num_classes"] == 3
    model.features[0] = torch.nn.Conv2d(3, 99, 3)
    with pytest.raises(ValueError, match=r"no longer the network that its arguments name \(features\.0\.bias"):
        save_model(model, tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()
