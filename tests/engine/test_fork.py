"""A child by a bare fork computes what its parent did, on threads of its own, or says that it cannot."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from vggfast.engine.capture import StreamLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROGRAM = """
import os, signal, threading, time
import torch, vggfast

torch.manual_seed(0)
torch.set_num_threads(2)
engine = vggfast.Engine(vggfast.VGG("A", width=0.1, num_classes=3, hidden=8), threads=2)
image = torch.rand(2, 3, 32, 32)
x, weight = torch.rand(1, 8, 96, 96), torch.randn(8, 8, 3, 3)  # so large that torch's threads convert its layout

def computed():
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = vggfast.ops.conv3x3(*leaves, relu=True, pool=True)
    return [engine(image), y.detach(), *torch.autograd.grad(y.square().sum(), leaves), x + 1]

def in_child():
    if (child := os.fork()) == 0:
        os._exit(0 if all(map(torch.equal, computed(), wanted)) and torch.get_num_threads() == 2 else 1)
    for _ in range(6000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

wanted, stop = computed(), threading.Event()
print(in_child())

def busy():
    torch.set_num_threads(2)
    while not stop.is_set():
        computed()

threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(3):
    print(in_child())
    assert all(map(torch.equal, computed(), wanted))
stop.set()
for thread in threads:
    thread.join()
"""


def test_children_compute():
    """The first of a parent whose threads rest, the others of one whose threads compute."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert (done.stdout.split(), done.stderr) == (["0"] * 4, "")


def test_an_engine_on_a_gpu_says_that_it_cannot(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    owner = Mock()
    lock = StreamLock(owner, torch.device("cuda:1"))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="the engine is on cuda:1, which a child by fork cannot use: start"):
        lock.__enter__()
