"""Runs that share their first stages: a copy of a finished run, continued with other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from scbig import config, stages
from scbig.run import STAGES, Run

_OF_STAGE_2 = ("flow", "evaluation", "predictions", "tensorboard", "report.html")


def fork(source: Path, folder: Path, changes: Sequence[str], until: str = "report") -> Run:
    """Stage 2 and what follows on one autoencoder with other settings.

    Args:
        source: a run of which ``pretrain`` is done.
        folder: the new run; continued where it exists.
        changes: settings, as on the command line.
        until: the last stage to run.
    """
    settings = config.override(config.read_json(source / "config.json"), list(changes))
    if not folder.exists():
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_OF_STAGE_2))
        Run(folder).forget("train")
        # The sources of conditions play no part before stage 2, though they are among the priors that clustering names.
        file = folder / "provenance.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        record["stages"]["cluster"]["settings"]["priors"]["condition"] = list(settings.priors.condition)
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    names = tuple(STAGES)
    return stages.execute(folder, settings, names[: names.index(until) + 1])
