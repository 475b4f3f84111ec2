"""The run directory: what each stage reads and writes, and whether it still belongs together."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from scbig import config as configuration
from scbig.errors import InputError, some
from scbig.files import atomic, digest

__all__ = ["STAGES", "Run", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage: the stages it reads from, the groups of settings that it depends on, and what it writes."""

    name: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    writes: tuple[str, ...]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", (), ("seed", "data", "split"), ("prepared.h5ad", "split.csv")),
        Stage("cluster", ("prepare",), ("seed", "priors", "modules"), ("modules.csv", "audit.json")),
        Stage(
            "pretrain",
            ("prepare", "cluster"),
            ("seed", "precision", "holdout_fraction", "gcae", "pretrain"),
            ("gcae/params", "gcae/summary.npz", "latents.zarr"),
        ),
        Stage(
            "train",
            ("prepare", "cluster", "pretrain"),
            ("seed", "precision", "holdout_fraction", "priors", "anchor", "condition", "velocity", "flow"),
            ("flow/params", "flow/conditions.npz", "flow/anchor.npz"),
        ),
        Stage("sample", ("prepare", "pretrain", "train"), ("seed", "sample"), ("predictions/test.h5ad",)),
        Stage("evaluate", ("prepare", "sample"), ("seed", "evaluation"), ("evaluation",)),
        Stage("report", ("prepare", "cluster", "sample", "evaluate"), (), ("report.html", "model_card.md")),
    )
}

_CHECKPOINTS = {"pretrain": "gcae/checkpoints", "train": "flow/checkpoints"}


class Run:
    """A run directory.

    Args:
        folder: where it is; made when the first stage writes.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """The place of one file of the run."""
        return self.folder / name

    @property
    def provenance(self) -> dict[str, Any]:
        """What each stage recorded when it finished; empty for a new directory."""
        file = self.path("provenance.json")
        if not file.exists():
            return {"stages": {}}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found["stages"], dict):
                raise TypeError("stages is not a table")
        except (ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{file} is damaged ({problem}); restore it or start in a new --workdir") from problem
        return found

    def is_done(self, name: str) -> bool:
        """Whether a stage has finished here."""
        return name in self.provenance["stages"]

    def require(self, names: tuple[str, ...], checked: bool = True) -> None:
        """Refuses to go on where a stage is missing or what it wrote has changed since.

        Raises:
            InputError: naming the stage to run, or the file that changed and the stage to rerun.
        """
        stages = self.provenance["stages"]
        for name in names:
            if name not in stages:
                raise InputError(f"{self.folder}: stage {name} has not been run; run `scbig {name}` first")
            for file, known in stages[name]["outputs"].items():
                if not self.path(file).exists():
                    raise InputError(f"{self.path(file)} is gone; rerun `scbig {name} --force`")
                if checked and digest(self.path(file)) != known:
                    raise InputError(
                        f"{self.path(file)} changed since stage {name} wrote it; rerun `scbig {name} --force`"
                    )

    def state_of(self, stage: Stage, settings: dict[str, Any], inputs: dict[str, str]) -> str:
        """``new`` where the stage has not finished, ``done`` where it has with these settings and inputs.

        Raises:
            InputError: where it finished, or was begun, with others; the message names them.
        """
        provenance = self.provenance
        done = provenance["stages"].get(stage.name)
        known = done or provenance.get("begun", {}).get(stage.name)
        # A stage that was begun binds the next attempt only by the checkpoints that it would continue.
        if known is None or not (done or self._has_checkpoint(stage.name)):
            return "new"
        force = f"rerun `scbig {stage.name} --force` (later stages follow) or take another --workdir"
        changed = _differences(_completed(known["settings"], settings), settings)
        if changed:
            raise InputError(f"{self.folder}: stage {stage.name} was run with {some(changed, 4)}; {force}")
        stale = [name for name in inputs if known["inputs"].get(name) != inputs[name]]
        if stale:
            raise InputError(f"{self.folder}: {some(stale)} changed since stage {stage.name} was run; {force}")
        if done:
            self.require((stage.name,), checked=False)
        return "done" if done else "new"

    def _has_checkpoint(self, name: str) -> bool:
        # One that was being written when the process died has a longer name, and is not continued.
        return name in _CHECKPOINTS and any(p.name.isdigit() for p in self.path(_CHECKPOINTS[name]).glob("*"))

    def outputs_of(self, names: tuple[str, ...]) -> dict[str, str]:
        """Hashes of what the named stages wrote, by file."""
        stages = self.provenance["stages"]
        return {file: known for name in names for file, known in stages[name]["outputs"].items()}

    def forget(self, name: str) -> list[str]:
        """Removes a stage's record, and that of every stage that reads from it; returns their names.

        What they wrote stays until it is replaced, except for checkpoints, which would be continued.
        """
        import shutil

        gone = {name}
        for stage in STAGES.values():
            if gone & set(stage.reads):
                gone.add(stage.name)
        provenance = self.provenance
        found = [s for s in STAGES if s in gone and (s in provenance["stages"] or s in provenance.get("begun", {}))]
        for each in found:
            provenance["stages"].pop(each, None)
            provenance.get("begun", {}).pop(each, None)
            if each in _CHECKPOINTS:
                shutil.rmtree(self.path(_CHECKPOINTS[each]), ignore_errors=True)
        self._write(provenance)
        return found

    @contextmanager
    def stage(self, stage: Stage, settings: dict[str, Any], inputs: dict[str, str], config: str) -> Iterator[dict]:
        """Records that a stage began, yields a dict for remarks, and records that it finished once the block succeeds."""
        begun = time.time()
        provenance = self.provenance
        provenance.setdefault("begun", {})[stage.name] = {"settings": settings, "inputs": inputs}
        self._write(provenance)
        with atomic(self.path("config.json")) as temporary:
            temporary.write_text(config, encoding="utf-8")
        remarks: dict[str, Any] = {}
        yield remarks
        provenance = self.provenance
        provenance["begun"].pop(stage.name, None)
        provenance["stages"][stage.name] = {
            "settings": settings,
            "inputs": inputs,
            "outputs": {file: digest(self.path(file)) for file in stage.writes},
            "seconds": round(time.time() - begun, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "remarks": remarks,
            "software": _software(),
        }
        self._write(provenance)

    def _write(self, provenance: dict[str, Any]) -> None:
        with atomic(self.path("provenance.json")) as temporary:
            temporary.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")


def _software() -> dict[str, str]:
    names = ("scbig", "jax", "flax", "optax", "orbax-checkpoint", "ott-jax", "anndata", "numpy")
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
    commit = _commit()
    return found | {"commit": commit} if commit else found


def _commit() -> str:
    """The commit that was installed or checked out, as far as files tell; empty where they do not."""
    told = json.loads(metadata.distribution("scbig").read_text("direct_url.json") or "{}")
    if known := told.get("vcs_info", {}).get("commit_id", ""):
        return known
    git = Path(__file__).parents[1] / ".git"
    if not (git / "HEAD").is_file():
        return ""
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    ref = git / head.removeprefix("ref: ")
    if not head.startswith("ref: "):
        return head
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def _completed(settings: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings; those that did not exist when they were recorded had what is now their default."""
    fresh = configuration.default()
    full = {name: fresh[name] for name in wanted if name not in settings and not isinstance(wanted[name], dict)}
    for name, value in settings.items():
        full[name] = fresh[name].to_dict() | value if isinstance(value, dict) and name in fresh else value
    return full


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, as ``name=old (now new)``."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            found.append(f"{prefix}{name}={a!r} (now {b!r})")
    return found
