"""The layers of a file in their order: the first that a VGG has not in that place is named."""

from pathlib import Path

import pytest

from vggfast.weights.formats._sequence import (
    AVERAGE,
    BATCH_NORM,
    CONV,
    FC,
    FLATTEN,
    LRN,
    MAX_POOL,
    RELU,
    SOFTMAX,
    Step,
    check_sequence,
)  # fmt: skip

PATH = Path("folder/m.onnx")
STAGES = {"A": (1, 1, 2, 2, 2), "A-LRN": (1, 1, 2, 2, 2), "C": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}
HEAD = [FC, RELU, FC, RELU, FC]


def steps(kinds):
    return [Step(f"layer {number}", kind) for number, kind in enumerate(kinds, 1)]


def trunk(config="A", batch_norm=False):
    kinds = []
    for count in STAGES[config]:
        for _ in range(count):
            kinds += [CONV, BATCH_NORM, RELU] if batch_norm else [CONV, RELU]
        kinds.append(MAX_POOL)
    return [*kinds[:2], LRN, *kinds[2:]] if config == "A-LRN" else kinds


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("config", STAGES)
def test_networks_of_the_paper(config, batch_norm):
    kinds = trunk(config, batch_norm) if config != "A-LRN" or not batch_norm else None
    if kinds is None:
        kinds = [*trunk("A", True)[:3], LRN, *trunk("A", True)[3:]]
    assert check_sequence(PATH, steps(kinds + HEAD), config, batch_norm) == []
    assert check_sequence(PATH, steps(kinds), config, batch_norm, head=False) == []
    assert check_sequence(PATH, steps(HEAD), config, batch_norm, features=False) == []


@pytest.mark.parametrize("head", [
    [AVERAGE, FLATTEN, *HEAD], [FLATTEN, *HEAD], [*HEAD[:-1], AVERAGE, FLATTEN, FC], [*HEAD, AVERAGE, FLATTEN],
])  # fmt: skip
def test_where_maps_become_rows(head):
    assert check_sequence(PATH, steps(trunk() + head), "A", False) == []


def test_a_softmax_at_the_end_is_said():
    found = steps(trunk() + HEAD)
    notes = check_sequence(PATH, [*found, Step("layer prob", SOFTMAX)], "A", False)
    assert notes == ["layer prob, a softmax behind the scores, is left out: the network gives what it reads"]


def test_what_follows_the_convolutions_is_left_out_when_asked():
    found = steps([*trunk(), MAX_POOL, "a Sigmoid"])
    assert check_sequence(PATH, found, "A", False, head=False, more=True) == []
    with pytest.raises(ValueError, match="layer 22 is a max-pool, where configuration A has nothing more"):
        check_sequence(PATH, found, "A", False, head=False)


@pytest.mark.parametrize(("change", "message"), [
    (lambda kinds: kinds.insert(21, MAX_POOL), "layer 22 is a max-pool, where configuration A has an FC layer, fc1"),
    (lambda kinds: kinds.pop(20), "layer 21 is an FC layer, where configuration A has a max-pool, pool5"),
    (lambda kinds: kinds.pop(22), "layer 23 is an FC layer, where configuration A has a ReLU"),
    (lambda kinds: kinds.insert(2, RELU), "layer 3 is a ReLU, where configuration A has a max-pool, pool1"),
    (lambda kinds: kinds.insert(1, BATCH_NORM), "layer 2 is a batch norm, where configuration A has a ReLU, relu1_1"),
    (lambda kinds: kinds.insert(2, LRN),
     "layer 3 is a local response normalisation, where configuration A has a max-pool, pool1"),
    (lambda kinds: kinds.__setitem__(1, "a Sigmoid"), "layer 2 is a Sigmoid, where configuration A has a ReLU"),
    (lambda kinds: kinds.__setitem__(2, AVERAGE), "layer 3 is an average pool, where configuration A has a max-pool"),
    (lambda kinds: kinds.insert(23, AVERAGE), "layer 24 is an average pool, where configuration A has an FC layer"),
    (lambda kinds: kinds.insert(3, CONV), "layer 5 is a convolution, where configuration A has a ReLU"),
    (lambda kinds: kinds.append(RELU), "layer 27 is a ReLU, where configuration A has nothing more"),
    (lambda kinds: kinds.extend([SOFTMAX, SOFTMAX]), "layer 27 is a softmax, where configuration A has nothing more"),
    (lambda kinds: kinds.insert(24, SOFTMAX), "layer 25 is a softmax, where configuration A has a ReLU"),
    (lambda kinds: kinds.pop(), r"m\.onnx ends behind layer 25, where configuration A has an FC layer, fc3"),
    (lambda kinds: kinds.clear(), r"m\.onnx ends, where configuration A has a convolution, conv1_1"),
])  # fmt: skip
def test_the_first_layer_of_another_network_is_named(change, message):
    kinds = trunk() + HEAD
    change(kinds)
    with pytest.raises(ValueError, match=message) as caught:
        check_sequence(PATH, steps(kinds), "A", False)
    assert str(caught.value).startswith("folder/m.onnx")
    behind = steps(kinds)[:21] == steps(trunk()) and len(kinds) > 20
    assert ("--features-only leaves out all that follows" in str(caught.value)) == behind
