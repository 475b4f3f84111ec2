"""A finished run as the analysis sees it: cells, parts, modules with names, and the predictor."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from jaxtyping import Float
from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import predict
from scbig.analysis.moves import module_scores
from scbig.data.conditions import CONTROL
from scbig.data.splits import Split
from scbig.errors import InputError
from scbig.modules import Modules
from scbig.predict import Predictor
from scbig.run import Run
from scbig.training import assemble

__all__ = ["View", "load"]

_NEEDED = ("prepare", "cluster", "pretrain", "train")


@dataclass(frozen=True)
class View:
    """What a run holds, in memory.

    Attributes:
        run: its directory.
        settings: its configuration.
        adata: the prepared screen; ``X`` log-expression, CSR.
        split: what was held out.
        part: ``train``, ``val`` or ``test`` for each cell.
        modules: in the order of ``adata.var_names``.
        audit: what the stage ``cluster`` found of the modules.
    """

    run: Run
    settings: ConfigDict
    adata: ad.AnnData
    split: Split
    part: np.ndarray
    modules: Modules
    audit: dict[str, Any]

    @cached_property
    def predictor(self) -> Predictor:
        """Samples cells; see :class:`scbig.predict.Predictor`."""
        return predict.load(self.run.folder)

    @cached_property
    def scores(self) -> Float[np.ndarray, "cells modules"]:
        """Mean log-expression of each module's genes in each cell."""
        return module_scores(self.adata.X, self.modules)

    @property
    def obs(self) -> pd.DataFrame:
        """The table of cells: condition, context, batch and more."""
        return self.adata.obs

    def conditions(self, part: str) -> list[str]:
        """Perturbed conditions with cells in a part, sorted."""
        found = self.obs["condition"].astype(str)[self.part == part].unique()
        return sorted(name for name in found if name != CONTROL)


def load(folder: str | os.PathLike) -> View:
    """A trained run, read for analysis; the whole prepared screen is in memory.

    Raises:
        InputError: where a stage has not been run, or its files changed since.
    """
    run = Run(Path(folder))
    if not run.path("config.json").exists():
        raise InputError(f"{folder} is not a run directory (no config.json); train one with `scbig run`")
    run.require(_NEEDED)
    adata = ad.read_h5ad(run.path("prepared.h5ad"))
    split = Split.load(run.path("split.csv"))
    return View(
        run=run,
        settings=configuration.read_json(run.path("config.json")),
        adata=adata,
        split=split,
        part=np.asarray(split.assign(adata.obs)),
        modules=assemble.load_modules(run, adata.var_names),
        audit=json.loads(run.path("audit.json").read_text(encoding="utf-8")),
    )
