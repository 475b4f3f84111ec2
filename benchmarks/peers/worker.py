"""A process that waits for requests, so that two methods can be measured by turns without starting anew.

Requests and answers are lines of JSON on its standard input and output; what it prints goes to its standard error.
Needs the standard library alone: it also runs where scbig cannot be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Worker", "serve"]

_ROOT = Path(__file__).resolve().parents[2]


def serve(commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers requests ``{"command": name, **options}`` until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # progress bars and prints of libraries
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(commands[request.pop("command")](**request)) + "\n")
        answers.flush()


class Worker:
    """The side that asks: starts ``python -m MODULE`` in the project's root.

    Attributes:
        name: for messages.
    """

    def __init__(self, name: str, python: str | Path, module: str):
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+", prefix="peer-", suffix=".log")
        # Compilation is a part of what is measured: nothing may come from an earlier process.
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [str(python), "-m", module],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            RuntimeError: the process ended; with the end of what it printed.
        """
        try:
            self._process.stdin.write(json.dumps({"command": command, **options}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before; there is no answer then, which is told below
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            told = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{self.name} stopped at '{command}':\n{told[-3000:]}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
