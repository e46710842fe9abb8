"""Classes of one name are told apart."""

from vggfast.report.confused import distinct, most_confused


def test_classes_of_one_name():
    classes = distinct(["crane", "ant", "crane"])
    assert classes == ["crane (0)", "ant", "crane (2)"]
    assert most_confused([0, 1], [2, 1], classes)[0] | {"percent": 0} == {
        "is": "crane (0)", "says": "crane (2)", "images": 1, "percent": 0,
    }  # fmt: skip
