import sys

import pytest

from scbig import console


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_table_lines_up(capsys):
    console.table([["method", "r", "n"], ["scBIG", "0.9", "10"], ["a longer name", "-0.25", "7"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  method             r   n",
        "  ─────────────  ─────  ──",
        "  scBIG            0.9  10",
        "  a longer name  -0.25   7",
    ]


def test_a_table_refuses_a_row_that_is_short():
    with pytest.raises((ValueError, IndexError)):
        console.table([["a", "b"], ["1"]])


def test_a_line_is_out_at_once(monkeypatch):
    calls = []

    class Stream:
        def write(self, text):
            calls.append(text)

        def flush(self):
            calls.append("FLUSH")

    monkeypatch.setattr(sys, "stdout", Stream())
    console.say("hello")
    assert "".join(calls) == "hello\nFLUSH"


def test_progress_speaks_in_plain_lines_now_and_then(capsys, clock):
    with console.Progress("train", 100) as progress:
        for _ in range(4):
            clock[0] += 10.0
            progress.note("loss 1.5")
            progress.advance(10)
    lines = capsys.readouterr().out.splitlines()
    # At 20 s and at 40 s, not at every step; then the whole.
    assert lines == [
        "train: 20 of 100, 1.0/s, 80 s left  loss 1.5",
        "train: 40 of 100, 1.0/s, 60 s left  loss 1.5",
        "train: 40 steps in 40.0 s  loss 1.5",
    ]


def test_progress_that_continues_says_where_and_rates_its_own_steps_alone(capsys, clock):
    with console.Progress("train", 100, done=60) as progress:
        clock[0] += 20.0
        progress.advance(20)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "train: continuing at 60 of 100",
        "train: 80 of 100, 1.0/s, 20 s left",
        "train: 20 steps in 20.0 s",
    ]


def test_progress_without_a_step_says_nothing(capsys):
    with console.Progress("train", 100):
        pass
    assert capsys.readouterr().out == ""


def test_progress_survives_a_clock_that_stands_still(capsys, clock):
    with console.Progress("train", 10) as progress:
        progress.advance(10)
    assert capsys.readouterr().out == "train: 10 steps in 0.0 s\n"


def test_progress_leaves_an_exception_alone(clock):
    with pytest.raises(RuntimeError, match="inside"), console.Progress("train", 10):
        raise RuntimeError("inside")


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.Progress("train", 50) as progress:
        progress.advance(25)
        progress.note("loss 0.5")
        assert progress._bar.tasks[0].completed == 25 and progress._bar.tasks[0].total == 50
        assert progress._bar.tasks[0].fields["note"] == "loss 0.5"
    assert progress._bar.live.is_started is False
    assert "steps in" not in capsys.readouterr().out
