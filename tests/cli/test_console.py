"""Progress on a terminal and elsewhere."""

import errno
import io

import pytest
from rich.console import Console

from vggfast import console as console_module
from vggfast._progress import duration
from vggfast.cli.training_bar import TrainingBar, step_text
from vggfast.console import ProgressBar, ProgressBars

_NAMES = ("top-1", "top-5")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def _step(step, **changes):
    values = {"step": step, "epoch": step // 10, "loss": 2.0 + step / 7, "top1_error": 50.0, "top5_error": 10.0,
              "lr": 0.01, "grad_norm": 1.5, "images_per_s": 100.0, "data_wait": 0.25}  # fmt: skip
    return {**values, **changes}


@pytest.fixture
def printed(monkeypatch):
    """What goes to the console."""
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Console(file=output, soft_wrap=True, width=200))
    return output


def _live(monkeypatch, seconds, **arguments):
    """A bar under a clock that stands `seconds` after its beginning from then on."""
    now = [1000.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    live = ProgressBar("training", 100, **arguments)
    now[0] += seconds
    return live


def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, printed):
    live = _live(monkeypatch, 20)
    with live:
        live.to(10, step_text(_step(10), _NAMES))
        live.to(11, "too soon")
        live.line("epoch done")
    assert printed.getvalue() == (
        "training 10/100  ETA 0:03:00  epoch 1  loss 3.429  100 images/s  data wait 25 %  "
        "top-1 error 50.0 %, accuracy 50.0 %  top-5 error 10.0 %, accuracy 90.0 %\n"
        "epoch done\n"
    )


def test_the_time_left_is_that_of_this_session(monkeypatch, printed):
    live = _live(monkeypatch, 20, done=50)
    live.to(50)
    assert "training 50/100  ETA -:--:--" in printed.getvalue()
    live = _live(monkeypatch, 20, done=50)
    live.to(60)  # 10 in 20 s, and 40 more
    assert "training 60/100  ETA 0:01:20" in printed.getvalue()


def test_quiet(monkeypatch, printed):
    with _live(monkeypatch, 20, quiet=True) as live:
        live.to(10)
        live.line("x")
    assert printed.getvalue() == ""


def test_a_full_disk_behind_the_output_does_not_stop(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(console_module, "console", Console(file=Full(), soft_wrap=True))
    live = _live(monkeypatch, 20)
    live.to(10)
    live.line("x")
    console_module.print_table("title", ["a", "b"], [("1", "2")])
    console_module.console.file = output = io.StringIO()
    live.line("again")
    assert output.getvalue().endswith("again\n")


def test_all_of_the_bar_fits_a_terminal_of_80_columns(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Console(file=output, force_terminal=True, width=80))
    with ProgressBar("training", 370_000, 100) as live:
        live.to(101, step_text(_step(101, epoch=73, loss=4.6, images_per_s=12345.0), _NAMES))
    for text in ("training", "101/370000", "0:00:00", "ETA", "epoch 73", "12345 images/s", "data wait 25 %",
                 "accuracy 90.0 %"):  # fmt: skip
        assert text in output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (90061, "25:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_bar_for_each_stage(monkeypatch, printed):
    """Whose time left is its own, from the first that it was told."""
    now = [1000.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with ProgressBars() as bars:
        for stage, done, text in (
            ("a", 0, ""),
            ("a", 10, ""),
            ("a", 20, ""),
            ("b", 4, ""),
            ("b", 8, "slow"),
            ("a", 20, ""),
        ):
            bars(stage, done, 20, text)
            now[0] += 20
        bars.line("warning: x")
    assert printed.getvalue() == ("a 10/20  ETA 0:00:20\na 20/20  ETA 0:00:00\nb 8/20  ETA 0:01:00  slow\nwarning: x\n")


def test_bars_of_other_ranks_are_quiet(monkeypatch, printed):
    monkeypatch.setattr(ProgressBar, "seconds_between_lines", -1.0)
    with ProgressBars(quiet=True) as bars:
        bars("a", 1, 2)
        bars.line("x")
    assert printed.getvalue() == ""
    with ProgressBars() as bars:
        bars("a", 1, 2)
    assert printed.getvalue() == "a 1/2  ETA -:--:--\n"


def test_a_bar_goes_when_what_it_is_of_fails(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Console(file=output, force_terminal=True, width=80))

    def fail(progress):
        progress("heat maps", 1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ProgressBars() as bars:
        fail(bars)
    assert "heat maps" in output.getvalue()
    assert output.getvalue().rindex(SHOW_CURSOR) > output.getvalue().rindex(HIDE_CURSOR)


def test_a_run_is_shown_as_it_goes(printed):
    bar = TrainingBar(("IoU 0.5", "IoU 0.75"))
    bar.on_warning("the disk is full")  # before the run begins, too
    bar.on_begin(3, 10)
    bar.on_step(_step(4))
    bar.on_validation_batch(1, 2)
    bar.on_epoch({"epoch": 0, "step": 4, "lr": 0.01, "train_loss": 1.5, "val_loss": 2.5, "val_top1_error": 25.0,
                  "val_top5_error": 50.0, "images_per_s": 100.0, "data_wait": 0.25})  # fmt: skip
    bar.on_end()
    assert printed.getvalue() == (
        "warning: the disk is full\n"
        "epoch   0  step      4  lr 0.01  loss 1.5000  validation loss 2.5000  IoU 0.5 error 25.00 %  "
        "IoU 0.75 error 50.00 %  100 images/s  data wait 25.0%\n"
    )


def test_ranks_but_the_first_show_nothing(printed):
    bar = TrainingBar(_NAMES, quiet=True)
    bar.on_begin(0, 10)
    bar.on_warning("the disk is full")
    bar.on_end()
    assert printed.getvalue() == ""
