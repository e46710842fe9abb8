"""Engine in use: what is kept and for how long, threads, shapes that come and go, photos and real weights."""

import gc
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vggfast
from tests.engine.test_engine import KINDS, exactly, kinds, small, trained
from tests.support.comparisons import relative_error
from vggfast import Engine
from vggfast.weights import read_state_dict

THREADS = pytest.mark.usefixtures("one_thread")


# ---- a snapshot ---------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("batch_norm", [False, True])
@THREADS
def test_a_snapshot_of_the_weights(batch_norm, kind):
    model, x = small(batch_norm=batch_norm, pool_size=2), torch.randn(2, 3, 64, 70)
    engine, fresh = Engine(model, **KINDS[kind][0]), Engine(model, **KINDS[kind][0])
    first = engine(x)
    with torch.no_grad():
        for t in model.state_dict().values():
            t.fill_(7)
    assert torch.equal(engine(x), first)
    assert torch.equal(fresh(x), first)  # what was not packed before the change
    assert torch.equal(engine(x[:, :, :40]), fresh(x[:, :, :40]))
    del model
    gc.collect()
    filler = [torch.full((1 << 18,), 3.0) for _ in range(50)]  # where the weights may have been
    assert torch.equal(engine(x), first)
    assert torch.equal(fresh(x[..., :50]), engine(x[..., :50]))
    assert len(filler) == 50


@THREADS
def test_the_model_is_left_alone():
    model = small(batch_norm=True).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x = torch.randn(2, 3, 40, 40)
    engine = Engine(model)
    y = engine(x)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert relative_error(y, exactly(model.eval(), x)) < 1e-5  # dropout and batch norm at rest


@THREADS
def test_results_are_the_callers():
    engine, x = Engine(small()), torch.randn(2, 3, 40, 40)
    first, map_ = engine(x), engine.features(x)
    kept, kept_map = first.clone(), map_.clone()
    engine(torch.randn(2, 3, 40, 40))
    engine.features(torch.randn(2, 3, 40, 40), engine.taps)
    assert torch.equal(first, kept)
    assert torch.equal(map_, kept_map)
    first.zero_()
    map_.add_(1)
    assert torch.equal(engine(x), kept)
    assert not first.requires_grad


# ---- shapes, memory -----------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("head", ["linear", "conv", "none"])
@THREADS
def test_no_images(head, kind):
    engine = Engine(small(head=head, pool_size=1), **KINDS[kind][0])
    shape = (0, 10) if head != "none" else (0, 128, 1, 2)
    assert engine(torch.randn(0, 3, 40, 64)).shape == shape
    assert engine(torch.randn(2, 3, 40, 64)).shape == (2, *shape[1:])
    assert engine(torch.randn(0, 3, 40, 64)).shape == shape
    taps = engine.features(torch.randn(0, 3, 40, 64), ["relu1_1", "pool2"])
    assert [tuple(y.shape) for y in taps.values()] == [(0, 16, 40, 64), (0, 32, 10, 16)]


@kinds
@THREADS
def test_more_shapes_than_plans_are_kept(kind):
    """Sixteen are: all come again, in other orders, with taps and without, and each is as at first."""
    model = small("A-LRN", width=0.125)
    engine, (options, bound) = Engine(model, **KINDS[kind][0]), KINDS[kind]
    images = [torch.randn(1 + i % 3, 3, 32 + 5 * i, 90 - 2 * i) for i in range(20)]
    first = [(engine(x), engine.features(x, ["relu1_1", "pool3"])) for x in images]
    for x, (y, _) in zip(images, first, strict=True):
        assert relative_error(y, exactly(model, x)) < bound
    held = engine.bytes
    order = torch.randperm(20).tolist() + list(range(20)) + list(reversed(range(20)))
    for i in order:
        y, taps = first[i]
        assert torch.equal(engine(images[i]), y)
        again = engine.features(images[i], ["relu1_1", "pool3"])
        assert all(torch.equal(again[name], taps[name]) for name in taps)
    assert engine.bytes == held
    assert torch.equal(Engine(model, **options)(images[7]), first[7][0])


@kinds
def test_a_plan_serves_one_number_of_channels(kind):
    """A network without weights takes any."""
    model = nn.Sequential(nn.MaxPool2d(2, 2), nn.ReLU())
    engine = Engine(model, **KINDS[kind][0])
    for channels in (3, 8, 3, 1):
        x = torch.randn(2, channels, 64, 64).bfloat16().float()
        assert torch.equal(engine(x), model(x))


@kinds
@THREADS
def test_memory_grows_with_the_largest_shape_alone(kind):
    model = small("D")
    engine = Engine(model, **KINDS[kind][0])
    weights = sum(p.numel() for p in model.parameters())
    before = engine.bytes
    assert 2 * weights < before < 4 * 64 / 9 * weights + (4 << 20) * len(list(model.parameters()))
    sizes = [(1, 3, 64, 64), (3, 3, 130, 97), (1, 3, 32, 32), (2, 3, 130, 97)]
    held = []
    for size in sizes:
        x = torch.randn(size)
        engine(x)
        held.append(engine.bytes)
        for _ in range(3):
            engine(x)
        assert engine.bytes == held[-1]
    assert before <= held[0] <= held[1] == held[2] == held[3]
    pixels = 3 * 130 * 97
    # At most an input, an output and what passes between them in 16 channels or fewer bytes, and a thread's scratch.
    assert held[1] - before < 4 * 4 * 16 * pixels + (64 << 20)


def run_alone(code) -> subprocess.CompletedProcess:
    """What might bring the process down, in another one."""
    code = "import torch\nfrom vggfast import VGG, Engine\n" + code
    folder = Path(vggfast.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def test_an_image_too_large_leaves_the_engine_as_it_was():
    done = run_alone("""
model = VGG("A", num_classes=3, width=0.1, hidden=8, pool_size=1).eval()
engine, x = Engine(model), torch.randn(2, 3, 64, 64)
y = engine(x)
try:
    engine(torch.zeros(1, 3, 1, 1).expand(1, 3, 1 << 23, 1 << 23))  # more than an address space
except MemoryError:
    print("MemoryError")
print(torch.equal(engine(x), y), torch.equal(engine(x[..., :40]), Engine(model)(x[..., :40])))
""")
    assert done.stdout.split() == ["MemoryError", "True", "True"], done.stderr
    assert done.returncode == 0


# ---- threads ------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_any_number_of_threads_gives_the_same_bits(set_threads, head, kind):
    engine, x = Engine(small("A-LRN", head=head, pool_size=2), **KINDS[kind][0]), torch.randn(3, 3, 97, 120)
    first = None
    for threads in (1, 2, 3, 1, 3):
        set_threads(threads)
        assert engine.threads == threads
        now = [engine(x), *engine.features(x, engine.taps).values()]
        first = first or now
        assert all(map(torch.equal, now, first))


@THREADS
def test_threads_of_its_own(set_threads):
    model, x = small(), torch.randn(2, 3, 64, 64)
    two = Engine(model, threads=2)
    expected = Engine(model)(x)
    for threads in (1, 3):
        set_threads(threads)
        assert two.threads == 2
        assert torch.equal(two(x), expected)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_several_threads_share_an_engine(set_threads, kind):
    """Different shapes and taps at a time, with a plan made and dropped under the others' feet."""
    set_threads(2)
    engine, images = Engine(small(width=0.125), **KINDS[kind][0]), [torch.randn(2, 3, 32 + i, 50) for i in range(20)]
    expected = [(engine(x), engine.features(x, ["pool2"])["pool2"]) for x in images]

    def work(start):
        for i in range(40):
            k = (start * 7 + i * 3) % 20
            if not torch.equal(engine(images[k]), expected[k][0]):
                return False
            if not torch.equal(engine.features(images[k], ["pool2"])["pool2"], expected[k][1]):
                return False
            assert engine.bytes > 0
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@THREADS
def test_an_image_alone_and_in_a_batch(algorithm):
    engine = Engine(small("B"))
    for size in ((64, 64), (97, 180)):
        x = torch.randn(7, 3, *size)
        alone = torch.cat([engine.features(x[i : i + 1]) for i in range(7)])
        for n in range(2, 8):
            assert relative_error(engine.features(x[:n]), alone[:n]) < 1e-5


@pytest.mark.parametrize(("inputs", "outputs", "size", "images"), [(256, 512, 28, 33), (512, 512, 28, 26)])
def test_the_last_group_of_a_batch_is_smaller(inputs, outputs, size, images):
    """Images run in groups; the last one's tasks may need more scratch memory than those of the others."""
    convolution = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
    engine = Engine(torch.nn.Sequential(convolution), threads=2, batch=images, size=size)
    x = torch.randn(images, inputs, size, size)
    with torch.no_grad():
        assert relative_error(engine(x), convolution(x)) < 1e-5


# ---- real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(shared_data) -> list[torch.Tensor]:
    """Photos of several sizes, normalised as ImageNet's are."""
    mean, std = (np.array(v, np.float32) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = []
    with tarfile.open(shared_data / "caltech-101.tar") as archive:
        for member in archive:
            if member.name.endswith(".jpg") and len(images) < 2:
                pixels = np.asarray(Image.open(archive.extractfile(member)).convert("RGB"), np.float32)
                images.append(torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None])
    return images


@kinds
def test_photos(pictures, kind):
    """Each at its own size, as it comes from a picture: bytes in rows of pixels."""
    model = trained(vggfast.VGG("D", num_classes=10, width=0.25, hidden=64, init="torchvision"))
    engine, bound = Engine(model, **KINDS[kind][0]), KINDS[kind][1]
    for x in pictures:
        assert relative_error(engine(x), exactly(model, x)) < bound


@pytest.fixture(scope="module")
def real_vgg16(shared_data) -> vggfast.VGG:
    """The published network, or its convolutions, where there is a state_dict with torchvision's names."""
    files = [path for path in sorted(shared_data.glob("vgg16*")) if path.suffix in (".pth", ".safetensors")]
    if not files:
        pytest.skip(f"no vgg16*.pth or vgg16*.safetensors in {shared_data}")
    state = read_state_dict(files[0])
    model = vggfast.VGG16(init_weights=False).eval()
    left = model.load_state_dict(state, strict=False)
    assert all(key.startswith("classifier") for key in left.missing_keys)
    return model


@pytest.mark.slow
@kinds
def test_real_weights(pictures, real_vgg16, kind):
    options, bound = KINDS[kind]
    engine = Engine(real_vgg16.features, **options)
    for x in pictures:
        assert relative_error(engine(x), exactly(real_vgg16.features, x)) < bound
