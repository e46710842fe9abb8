"""Style transfer: the loss falls, the picture has the content's aspect, and the command says what is wrong."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast.cli import main
from vggfast.losses import ContentStyle
from vggfast.style_transfer import picture_of, stylise
from vggfast.weights import save_model


@pytest.fixture
def pictures():
    generator = np.random.default_rng(0)
    return tuple(Image.fromarray(generator.integers(0, 256, size, np.uint8)) for size in ((40, 60, 3), (50, 50, 3)))


def losses_of(*arguments, **options):
    found = []
    stylise(*arguments, **options, progress=lambda done, total, text="": found.append((done, total, text)))
    assert [done for done, _, _ in found] == list(range(found[0][1] + 1))
    return [float(re.search("loss (.*)", text)[1]) for _, _, text in found[1:]], found[1][2]


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
@pytest.mark.parametrize("start", ["content", "noise"])
def test_the_loss_falls(model, pictures, optimiser, start):
    options = {"net": model, "size": 32, "scales": 1, "steps": 8, "style_weight": 1.0}
    found, text = losses_of(*pictures, **options, optimiser=optimiser, start=start)
    assert found[-1] < 0.9 * found[0]
    assert text.startswith("48 x 32, loss ")


def test_scales_and_what_is_watched(model, pictures):
    seen = []
    made = stylise(*pictures, net=model, size=32, scales=2, steps=2, watch=lambda step, x: seen.append((step, x.shape)))
    assert made.size == (48, 32)
    assert seen == [(1, (1, 3, 16, 24)), (2, (1, 3, 16, 24)), (3, (1, 3, 32, 48)), (4, (1, 3, 32, 48))]


def test_without_style_the_content_stays(model, pictures):
    content = pictures[0].resize((24, 16))
    made = stylise(content, pictures[1], net=model, size=16, scales=1, steps=3, style_weight=0.0)
    assert np.array_equal(np.asarray(made), np.asarray(content))


def test_noise_is_the_seeds(model, pictures):
    options = {"net": model, "size": 16, "scales": 1, "steps": 1, "start": "noise", "optimiser": "adam"}
    first, again, other = (np.asarray(stylise(*pictures, **options, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_loss_that_is_not_finite_stops(model, pictures, monkeypatch):
    monkeypatch.setattr(ContentStyle, "forward", lambda self, x: x.sum() * torch.inf)
    with pytest.raises(FloatingPointError, match="the loss must be finite, got inf in step 1: try optimiser 'adam'"):
        stylise(*pictures, net=model, size=16, scales=1)


def test_picture_of_cuts():
    x = torch.tensor([-0.1, 0.5, 1.2]).view(1, 3, 1, 1)
    assert picture_of(x).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(("options", "message"), [
    ({"optimiser": "sgd"}, "optimiser must be one of 'lbfgs', 'adam', got 'sgd'"),
    ({"start": "style"}, "start must be one of 'content', 'noise', got 'style'"),
    ({"size": 32, "scales": 3}, "size must be at least 64 for 3 scales, got 32"),
    ({"size": 8}, "size must be at least 16, got 8"),
    ({"scales": 0}, "scales must be at least 1, got 0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"style_weight": -1.0}, "style_weight must be at least 0 and finite, got -1.0"),
    ({"tv_weight": float("nan")}, "tv_weight must be at least 0 and finite, got nan"),
    ({"content": "a.jpg"}, r"content must be an image of PIL's, such as PIL.Image.open\(FILE\), got str 'a.jpg'"),
    ({"style": torch.rand(3, 9, 9)}, r"style must be an image of PIL's, .*got torch.Tensor of shape \(3, 9, 9\)"),
    ({"style": Image.new("F", (9, 9))}, "style: its pixels must be of 8 or 16 bits, got mode F, floating pixels"),
    ({"seed": "a"}, "seed must be a whole number, got str 'a'"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"seed": 2**63}, "seed must be at most 9223372036854775807, got 9223372036854775808"),
    ({"device": "gpu"}, "device must be one that torch has here, got 'gpu'"),
    ({"device": 3.5}, r"device must be one that torch has here, got 3\.5"),
])  # fmt: skip
def test_arguments_that_do_not_fit(model, pictures, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        stylise(**{"content": pictures[0], "style": pictures[1], "net": model, **options})


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(model, pictures, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    for name, picture in zip("ab", pictures, strict=True):
        picture.save(tmp_path / f"{name}.jpg")
    files = {"--content": "a.jpg", "--style": "b.jpg", "--out": "c.png", "--model": "m.safetensors"}
    paths = [part for option, name in files.items() for part in (option, str(tmp_path / name))]
    return ["stylise", *paths, "--size", "32", "--steps", "3", "--device", "cpu"]


@pytest.mark.parametrize("option", ["--optimiser", "--optimizer"])
def test_command(command, tmp_path, capsys, option):
    assert main([*command, option, "adam", "--save-every", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'c.png'}: 48 x 32"
    written = {path.name: Image.open(path).size for path in tmp_path.glob("c*.png")}
    assert written == {"c.png": (48, 32), "c-00002.png": (24, 16), "c-00004.png": (48, 32), "c-00006.png": (48, 32)}


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--out", "c.jpg"], 1, "--out must end in .png, got c.jpg"),
    (["--style", "none.jpg"], 1, "none.jpg: no such image file"),
    (["--save-every", "0"], 1, "--save-every must be at least 1, got 0"),
    (["--style-weight", "-1"], 1, "style_weight must be at least 0 and finite, got -1.0"),
    (["--content", "d.png", "--out", "d.png"], 2, "--out must be another file than --content, got d.png for both"),
])  # fmt: skip
def test_command_errors(command, tmp_path, capsys, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    assert main([*command, *options]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_command_without_weights(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    at = command.index("--model")
    assert main([*command[:at], *command[at + 2 :]]) == 1
    assert "the command `vggfast weights get vgg16-conv` fetches it" in capsys.readouterr().err
