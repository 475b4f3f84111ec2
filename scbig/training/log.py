"""The record of a run: metrics.jsonl for machines, TensorBoard for people."""

from __future__ import annotations

import json
import math
from pathlib import Path

from scbig import devices
from scbig.files import atomic, no_space

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends metrics of one stage; lines that a killed run wrote past its last checkpoint are dropped on resuming.

    Of several processes the first alone writes.
    """

    def __init__(self, folder: Path, stage: str, resume_step: int = 0):
        self._file = self._board = None
        if not devices.is_first():
            return
        from tensorboardX import SummaryWriter

        self._stage = stage
        self._path = Path(folder) / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in _lines(self._path) if line["stage"] != stage or line["step"] <= resume_step]
            with atomic(self._path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._path, "a", encoding="utf-8")
        self._board = SummaryWriter(str(Path(folder) / "tensorboard" / stage), purge_step=resume_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line: stage, step and the metrics; a number that is not finite is written as null."""
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        line = {"stage": self._stage, "step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with no_space(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[dict]:
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            # Only the line being written when a run was killed can be cut short.
            continue
    return found


def read_metrics(folder: Path, stage: str) -> list[dict]:
    """The lines of one stage, in order; empty where nothing was logged."""
    path = Path(folder) / "metrics.jsonl"
    return [line for line in _lines(path) if line["stage"] == stage] if path.exists() else []
