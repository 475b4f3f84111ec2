"""What is printed while a stage works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress", "say", "table"]


def say(text: str) -> None:
    """One line for the user, at once."""
    print(text, flush=True)


class Progress:
    """Progress of a loop with rate and time left; a context manager.

    Args:
        name: what is being done.
        total: steps in all.
        done: steps that an earlier process made.
        unit: what is counted.
    """

    _EVERY = 15.0  # seconds between plain lines

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "steps"):
        self._name, self._total, self._done, self._first, self._unit = name, total, done, done, unit
        self._bar: Any = None
        self._note = ""

    def __enter__(self) -> Progress:
        """Starts the clock."""
        self._start = self._spoke = time.monotonic()
        if sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description:<9}"),
                progress.BarColumn(bar_width=28),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("[dim]{task.fields[note]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, completed=self._done, note="", rate="")
        elif self._done:
            say(f"{self._name}: continuing at {self._done} of {self._total}")
        return self

    def advance(self, steps: int) -> None:
        """So many steps more are done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self._rate():.1f}/s")
        elif time.monotonic() - self._spoke > self._EVERY:
            self._speak()

    def note(self, text: str) -> None:
        """A remark shown beside the bar."""
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, note=text)

    def _rate(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _speak(self) -> None:
        self._spoke = time.monotonic()
        left = (self._total - self._done) / max(self._rate(), 1e-9)
        say(
            f"{self._name}: {self._done} of {self._total}, {self._rate():.1f}/s, {left:.0f} s left  {self._note}".rstrip()
        )

    def __exit__(self, *_: object) -> None:
        """Leaves the last state on screen."""
        if self._bar is not None:
            self._bar.stop()
        elif self._done > self._first:
            seconds = time.monotonic() - self._start
            say(f"{self._name}: {self._done - self._first} {self._unit} in {seconds:.1f} s  {self._note}".rstrip())


def table(rows: list[list[str]]) -> None:
    """Prints rows with a header; the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        say("  " + "  ".join(cells).rstrip())
        if number == 0:
            say("  " + "  ".join("─" * width for width in widths))
