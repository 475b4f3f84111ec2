"""Runs that share their first stages: what one run has finished, another with the same settings takes over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig.errors import InputError
from scbig.files import atomic
from scbig.run import STAGES, Run, Stage
from scbig.stages import _chosen, _file_inputs, _plain, execute
from scbig.training import read_metrics

__all__ = ["Files", "common", "finished", "fork", "share", "take_over"]

_NAMES = tuple(STAGES)

_UNREAD: dict[str, dict[str, tuple[str, ...]]] = {
    "cluster": {"priors": ("condition", "min_pathway", "max_pathway")},
}
"""Settings that a stage records with the rest of their group, and that change nothing of what it writes.

The sources of conditions and the limits of pathways play no part before stage 2, though they stand among the priors.
"""


class Files:
    """Hashes of what stages read from outside a run, each taken once: a grid asks for the same screen many times."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def read_by(self, stage: str, settings: ConfigDict) -> dict[str, str]:
        """As ``scbig.stages`` records them.

        Raises:
            InputError: a file that is not there.
        """
        groups = {group: _plain(settings[group]) for group in ("data", "split", "priors", "anchor")}
        key = json.dumps([stage, groups], sort_keys=True)
        if key not in self._known:
            self._known[key] = _file_inputs(stage, settings)
        return self._known[key]


def common(first: ConfigDict, second: ConfigDict) -> int:
    """How many leading stages write the same with either settings, from the same files."""
    for number, stage in enumerate(STAGES.values()):
        if _read(stage, first) != _read(stage, second):
            return number
    return len(STAGES)


def finished(run: Run, settings: ConfigDict, files: Files | None = None) -> int:
    """How many leading stages are done in a run with these settings and the files of now."""
    files = files or Files()
    for number, (name, stage) in enumerate(STAGES.items()):
        try:
            if not run.is_done(name):
                return number
            inputs = run.outputs_of(stage.reads) | files.read_by(name, settings)
            run.state_of(stage, _chosen(stage, settings), inputs)
        except InputError:
            return number  # the run is tried, and says what is wrong itself
    return len(STAGES)


def share(
    folder: Path, settings: ConfigDict, others: Iterable[tuple[Path, ConfigDict]], files: Files
) -> tuple[Path, tuple[str, ...]] | None:
    """Gives a run the leading stages that one of the others has finished with the same settings, the most there are.

    Args:
        folder: of the run; it may have stages of its own, which stay.
        settings: its own.
        others: folders and settings of runs to take from.
        files: hashes that are known.

    Returns:
        The folder that was taken from and the stages that were; None where there were none to take.
    """
    own, best, source = finished(Run(folder), settings, files), 0, None
    for other, theirs in others:
        n = common(settings, theirs)
        if n > max(own, best):
            n = min(n, finished(Run(other), theirs, files))
            if n > max(own, best):
                best, source = n, Run(other)
    if source is None:
        return None
    take_over(source, Run(folder), settings, _NAMES[own:best], files)
    return source.folder, _NAMES[own:best]


def take_over(source: Run, run: Run, settings: ConfigDict, stages: Sequence[str], files: Files) -> None:
    """Puts what the stages of one run wrote, and their record, into another whose stages would write the same.

    Files are linked where the file system can, since runs replace their files and never change them in place.

    Args:
        source: has done the stages.
        run: has done what comes before them.
        settings: of the run.
        stages: their names, in order.
        files: hashes that are known.
    """
    for name in stages:
        stage = STAGES[name]
        if name in run.provenance.get("begun", {}):
            run.forget(name)  # checkpoints of an attempt that is not needed any more
        for file in stage.writes:
            _copy(source.path(file), run.path(file))
        if (board := source.path(f"tensorboard/{name}")).is_dir():
            _copy(board, run.path(f"tensorboard/{name}"))
        if lines := read_metrics(source.folder, name):
            kept = [line for other in _NAMES if other != name for line in read_metrics(run.folder, other)]
            with atomic(run.path("metrics.jsonl")) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *lines]), encoding="utf-8")
        provenance = run.provenance
        provenance["stages"][name] = source.provenance["stages"][name] | {
            # Those that the stage does not read may differ.
            "settings": _chosen(stage, settings),
            "inputs": run.outputs_of(stage.reads) | files.read_by(name, settings),
            "taken_from": str(source.folder),
        }
        run._write(provenance)
    with atomic(run.path("config.json")) as temporary:
        temporary.write_text(configuration.as_json(settings), encoding="utf-8")


def fork(source: Path, folder: Path, changes: Sequence[str], until: str = "report") -> Run:
    """A finished run once more with other settings of stage 2, on its own autoencoder.

    Args:
        source: a run of which ``pretrain`` is done.
        folder: the new run; continued where it exists.
        changes: settings, as on the command line.
        until: the last stage to run.

    Raises:
        InputError: the changes concern what comes before stage 2, or ``pretrain`` is not done.
    """
    before = configuration.read_json(Path(source) / "config.json")
    settings, files = configuration.override(before, list(changes)), Files()
    share(Path(folder), settings, [(Path(source), before)], files)
    needed = _NAMES.index("train")
    if (n := finished(Run(folder), settings, files)) < needed:
        raise InputError(
            f"{folder} cannot go on from {source}: stage {_NAMES[n]} is not done there, or was with other settings"
        )
    return execute(folder, settings, _NAMES[: _NAMES.index(until) + 1])


def _read(stage: Stage, settings: ConfigDict) -> Mapping[str, Any]:
    """The settings that a stage depends on in truth."""
    chosen = _chosen(stage, settings)
    for group, names in _UNREAD.get(stage.name, {}).items():
        chosen[group] = {name: value for name, value in chosen[group].items() if name not in names}
    return chosen


def _copy(source: Path, target: Path) -> None:
    with atomic(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link)
        else:
            _link(source, temporary)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
