"""The stages of a run, in order; each reads what earlier ones wrote (design section 3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig.console import say
from scbig.errors import InputError
from scbig.files import digest
from scbig.run import STAGES, Run
from scbig.stages.prepare import cluster, prepare
from scbig.stages.score import evaluate, judge, report, sample, write_cells
from scbig.stages.train import pretrain, train

__all__ = ["execute", "judge", "write_cells"]

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
    _announce_device(settings.device)
    if force:
        run.forget(stages[0])
    for name in stages:
        stage = STAGES[name]
        run.require(stage.reads)
        chosen = {group: _plain(settings[group]) for group in stage.settings}
        inputs = run.outputs_of(stage.reads) | (_file_input(settings) if name == "prepare" else {})
        if run.state_of(stage, chosen, inputs) == "done":
            say(f"{name}: done before")
            continue
        with run.stage(stage, chosen, inputs, configuration.as_json(settings)) as remarks:
            _DO[name](run, settings, remarks)
        say(f"{name}: done in {run.provenance['stages'][name]['seconds']:.0f} s")
    return run


def _announce_device(wanted: str) -> None:
    """Says first where the work will be done: a silent fallback to the CPU costs users days."""
    import jax

    found = jax.devices()[0]
    say(f"device: {found.platform} ({found.device_kind}, {jax.device_count()} in all), jax {jax.__version__}")
    platforms = {"cpu": ("cpu",), "gpu": ("gpu", "cuda", "rocm"), "tpu": ("tpu",)}
    if wanted and found.platform not in platforms.get(wanted, (wanted,)):
        raise InputError(
            f"device {wanted} was asked for but JAX found only {found.platform}; install scbig[gpu] or drop --config.device"
        )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict())) if isinstance(value, ConfigDict) else value


def _file_input(settings: ConfigDict) -> dict[str, str]:
    path = Path(settings.data.path)
    if not settings.data.path:
        raise InputError("no screen given; name an .h5ad or .zarr with --config.data.path=FILE")
    if not path.exists():
        raise InputError(f"no file {path}; check --config.data.path")
    return {"data": digest(path)}
