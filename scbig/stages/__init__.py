"""The stages of a run, in order; each reads what earlier ones wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import devices, programs
from scbig.console import say
from scbig.errors import InputError
from scbig.files import digest
from scbig.run import STAGES, Run, Stage
from scbig.stages.baselines import Task, fit_baselines, next_command
from scbig.stages.common import prior_file
from scbig.stages.prepare import cluster, prepare
from scbig.stages.score import evaluate, judge, report, sample, write_cells
from scbig.stages.train import pretrain, train
from scbig.training.vocabulary import IDENTITY

__all__ = ["Task", "announce_device", "execute", "fit_baselines", "judge", "next_command", "write_cells"]

_DO: dict[str, Callable[[Run, ConfigDict, dict], None]] = {
    "prepare": prepare,
    "cluster": cluster,
    "pretrain": pretrain,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "report": report,
}


def execute(
    workdir: str | Path, settings: ConfigDict, stages: Sequence[str] = tuple(STAGES), force: bool = False
) -> Run:
    """Runs stages in a run directory, skipping those that are done with the same settings.

    Args:
        workdir: the run directory; made where it does not exist.
        settings: the configuration, as from :func:`scbig.config.default`.
        stages: names of the stages, in order.
        force: run them again, and forget the stages that read from them.

    Raises:
        InputError: for mistakes in input or settings, or where a stage does not fit what is in the directory.
    """
    run = Run(workdir)
    with devices.together():
        announce_device(settings.device, settings.n_devices, settings.compiled)
        devices.on_first(lambda: _refuse_other_settings(run, settings, stages))
        for name in stages:
            _execute_one(run, settings, name, force and name == stages[0])
    return run


def _execute_one(run: Run, settings: ConfigDict, name: str, force: bool) -> None:
    """One stage; all processes train, everything else is done by the first while the others wait."""
    stage, training = STAGES[name], name in ("pretrain", "train")
    chosen = _chosen(stage, settings)

    def inputs_if_new() -> dict[str, str] | None:
        run.require(stage.reads)
        inputs = run.outputs_of(stage.reads) | _file_inputs(name, settings)
        if force:
            # Only now, so that a mistake found above does not cost a finished run its record.
            run.forget(name)
        if run.state_of(stage, chosen, inputs) == "done":
            say(f"{name}: done before")
            return None
        return inputs

    inputs = devices.on_first(inputs_if_new)
    if inputs is None:
        return
    precision = programs.precision(settings.precision) if training else nullcontext("")

    def recorded() -> None:
        with precision as found, run.stage(stage, chosen, inputs, configuration.as_json(settings)) as remarks:
            _DO[name](run, settings, remarks)
            remarks |= {"precision": found, "devices": devices.count()} if training else {}
        say(f"{name}: done in {run.provenance['stages'][name]['seconds']:.0f} s")

    if training and not devices.is_first():
        with precision:
            _DO[name](run, settings, {})
    devices.on_first(recorded)


def _chosen(stage: Stage, settings: ConfigDict) -> dict[str, Any]:
    """The settings that a stage depends on."""
    return {group: _plain(settings[group]) for group in stage.settings}


def _refuse_other_settings(run: Run, settings: ConfigDict, stages: Sequence[str]) -> None:
    """Refuses settings that the stages before the ones asked for were not run with.

    They would not be acted on, but be kept as if they had been.
    """
    done = run.provenance["stages"]
    earlier: set[str] = set()
    for stage in reversed(STAGES.values()):
        if stage.name in stages or stage.name in earlier:
            earlier |= set(stage.reads)
    for name in STAGES:
        if name in earlier - set(stages) and name in done:
            run.state_of(STAGES[name], _chosen(STAGES[name], settings), done[name]["inputs"])


def announce_device(wanted: str, number: int = 0, compiled: str = "") -> None:
    """Says first where the work will be done: a silent fallback to the CPU costs users days.

    Args:
        wanted: ``cpu``, ``gpu`` or ``tpu``, or empty for any.
        number: how many devices training is spread over; 0: all.
        compiled: where compiled programs are kept, as ``settings.compiled``.
    """
    not_kept = programs.keep_compiled(compiled)
    say(devices.choose(wanted, number))
    if not_kept:
        say(not_kept)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict())) if isinstance(value, ConfigDict) else value


def _file_inputs(stage: str, settings: ConfigDict) -> dict[str, str]:
    """What a stage reads from outside the run, by contents: the screen, a split that is a file, and the priors."""
    if stage in ("cluster", "pretrain", "train"):
        given = settings.priors
        singles = (given.aliases, given.gene_ids, given.ppi, given.ppi_info, given.pathways)
        names = {*singles, *given.semantic, *given.condition, *given.gene_sets, *settings.anchor.sources} - {
            "",
            IDENTITY,
        }
        return {name: digest(prior_file(settings, name)) for name in sorted(names)}
    if stage != "prepare":
        return {}
    path, split = Path(settings.data.path), Path(settings.split.path)
    if not settings.data.path:
        raise InputError("no screen given; name an .h5ad or .zarr with --config.data.path=FILE")
    if not path.exists():
        raise InputError(f"no file {path}; check --config.data.path")
    if settings.split.path and not split.is_file():
        raise InputError(f"no file {split}; check --config.split.path")
    return {"data": digest(path)} | ({"split": digest(split)} if settings.split.path else {})
