"""What every benchmark says of itself: the machine, the date, the commit and the versions."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path


def provenance() -> dict[str, str]:
    """Where and when the figures were made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "date": datetime.date.today().isoformat(),
        "commit": commit.strip() + (" with changes" if changed.strip() else ""),
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
    }


def peak_gigabytes() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def write(out: str, title: str, command: str, rows: list[list[str]], notes: list[str], record: dict) -> None:
    """Prints the table, and writes it as OUT.md and OUT.json."""
    about = provenance()
    told = ", ".join(f"{key} {value}" if key in ("python", "jax", "commit") else value for key, value in about.items())
    text = "\n\n".join([f"# {title}", f"Command: `{command}`", f"Made on: {told}.", markdown(rows), *notes]) + "\n"
    print(text)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".json").write_text(json.dumps({"about": about, **record}, indent=1) + "\n", encoding="utf-8")
