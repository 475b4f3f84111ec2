"""What every baseline is fitted on and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from scbig.baselines.latent import Latent
from scbig.baselines.means import group_means
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.data.store import Rows
from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = [
    "Embedding",
    "Model",
    "Skipped",
    "TrainingData",
    "as_cells",
    "as_effects",
    "training_data",
    "training_data_from_effects",
    "training_data_from_rows",
]


class Skipped(NamedTuple):
    """A condition that a baseline cannot predict, and why."""

    condition: str
    context: str
    reason: str


@dataclass(frozen=True)
class Embedding:
    """Vectors of perturbed genes from one source.

    Attributes:
        genes: symbols, one per row.
        vectors: one row per gene.
        mask: whether the source knows the gene; a row without is never read.
    """

    genes: tuple[str, ...]
    vectors: Float[np.ndarray, "targets dims"]
    mask: Bool[np.ndarray, " targets"]

    def rows(self) -> dict[str, np.ndarray]:
        """The known vectors by gene, float64."""
        return {
            g: v.astype(np.float64) for g, v, known in zip(self.genes, self.vectors, self.mask, strict=True) if known
        }


@dataclass(frozen=True)
class TrainingData:
    """Effects of the training conditions, and nothing else of the screen.

    Attributes:
        genes: symbols, one per column.
        conditions: canonical conditions, one per row.
        contexts: the context of each row.
        effects: mean log-expression minus that of controls of the same context, one row per condition and
            context.
        n_cells: training cells behind each row; 0 where the input was effects.
        control_mean: mean log-expression of training controls by context; empty where the input was effects.
        embeddings: vectors of perturbed genes, by source.
        latent: a latent space of the cells; None where there is none.
    """

    genes: tuple[str, ...]
    conditions: tuple[str, ...]
    contexts: tuple[str, ...]
    effects: Float[np.ndarray, "rows genes"]
    n_cells: Int[np.ndarray, " rows"]
    control_mean: Mapping[str, np.ndarray] = field(default_factory=dict)
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    latent: Latent | None = None

    def own(self, context: str) -> dict[str, np.ndarray]:
        """Training effects measured in this very context, by condition, float64."""
        return {
            c: e.astype(np.float64)
            for c, k, e in zip(self.conditions, self.contexts, self.effects, strict=True)
            if k == context
        }

    def table(self, context: str) -> dict[str, np.ndarray]:
        """Training effects by condition: of this context, else the mean over the contexts that have one."""
        rows: dict[str, list[np.ndarray]] = {}
        for condition, effect in zip(self.conditions, self.effects, strict=True):
            rows.setdefault(condition, []).append(effect.astype(np.float64))
        return {c: np.mean(effects, axis=0) for c, effects in rows.items()} | self.own(context)


Rule = Callable[[str, str], "np.ndarray | str"]
Account = Callable[[str, str], Mapping[str, "float | str"]]


def _no_account(condition: str, context: str) -> dict[str, float | str]:
    return {}


@dataclass(frozen=True)
class Model:
    """A fitted baseline.

    Attributes:
        name: which baseline.
        genes: symbols, one per column of what it predicts.
        context: the context meant where none is given.
        rule: maps a condition and a context to an effect over genes, or to the reason why there is none.
        notes: what was chosen while fitting (rank, rows used), for the report.
        study: settings that were tried while fitting, one record each, with their score.
        account: what the prediction of a condition and context rests on, for the report: ``basis`` (such as
            ``measured``, ``pair of measured singles``, ``neighbours``, ``mean``), ``skill`` (the correlation that
            cross-validation found for conditions alike) and ``kept`` (the share of the deviation from the simpler
            answer that was kept). Empty for models that do not say.
        settings: options of ``fit`` that give the same model again without searching for them.
    """

    name: str
    genes: tuple[str, ...]
    context: str
    rule: Rule
    notes: tuple[str, ...] = ()
    study: tuple[dict, ...] = ()
    account: Account = _no_account
    settings: Mapping[str, Any] = field(default_factory=dict)

    def can_predict(self, condition: str, context: str | None = None) -> bool:
        """Whether the baseline has an answer for this condition."""
        return not isinstance(self.rule(condition, context or self.context), str)

    def skipped(self, conditions: Sequence[str], contexts: Sequence[str] | None = None) -> list[Skipped]:
        """Those of the conditions that it cannot predict, each with the reason."""
        answers = ((c, k, self.rule(c, k)) for c, k in self._keys(conditions, contexts))
        return [Skipped(c, k, a) for c, k, a in answers if isinstance(a, str)]

    def predict(self, conditions: Sequence[str], contexts: Sequence[str] | None = None) -> Float[np.ndarray, "n genes"]:
        """Predicted effects, float32, one row per condition.

        Args:
            conditions: canonical conditions.
            contexts: one per condition; the training context where the screen has a single one.

        Returns:
            Differences of mean log-expression to control. A row is NaN throughout where the baseline has no
            answer; ``skipped`` says why.
        """
        out = np.full((len(conditions), len(self.genes)), np.nan, np.float32)
        for row, (condition, context) in enumerate(self._keys(conditions, contexts)):
            answer = self.rule(condition, context)
            if not isinstance(answer, str):
                out[row] = answer
        return out

    def _keys(self, conditions: Sequence[str], contexts: Sequence[str] | None) -> list[tuple[str, str]]:
        if contexts is None:
            contexts = [self.context] * len(conditions)
        if len(contexts) != len(conditions):
            raise InputError(f"{len(conditions)} conditions but {len(contexts)} contexts: give one per condition")
        return list(zip(conditions, contexts, strict=True))


def _contexts(obs: pd.DataFrame) -> np.ndarray:
    return obs["context"].astype(str).to_numpy() if "context" in obs else np.full(len(obs), "all")


def training_data(
    adata: AnnData,
    split: Split,
    embeddings: Mapping[str, Embedding] | None = None,
    latent: Latent | None = None,
) -> TrainingData:
    """Training effects of a screen of cells: cells of the training part only, validation left out.

    Args:
        adata: canonical cells.
        split: which cells are for training.
        embeddings: vectors of perturbed genes, for the baselines that use them.
        latent: a latent space of training cells over the same genes, for the baselines that use one.

    Raises:
        InputError: no training perturbation, or a context with training perturbations but no training
            control.
    """
    part = np.asarray(split.assign(adata.obs))
    return training_data_from_rows(
        adata.X, adata.obs, part, tuple(map(str, adata.var_names)), embeddings=embeddings, latent=latent
    )


def training_data_from_rows(
    x: np.ndarray | sp.spmatrix | sp.sparray | Rows,
    obs: pd.DataFrame,
    part: np.ndarray,
    genes: tuple[str, ...],
    embeddings: Mapping[str, Embedding] | None = None,
    latent: Latent | None = None,
) -> TrainingData:
    """The same from a matrix that may be on disk, read once block by block.

    Args:
        x: log-expression, cells by genes.
        obs: ``condition`` and, where there are several, ``context`` of every cell.
        part: the part of every cell; only ``train`` is read.
        genes: symbols, one per column.
        embeddings: vectors of perturbed genes.
        latent: a latent space of training cells.

    Raises:
        InputError: as :func:`training_data`.
    """
    train = part == "train"
    keys = pd.DataFrame({"condition": obs["condition"].astype(str).to_numpy(), "context": _contexts(obs)})
    number = keys.groupby(["context", "condition"], sort=True).ngroup().to_numpy()
    first = keys.assign(number=number).drop_duplicates("number").sort_values("number")
    means, count = group_means(x, np.where(train, number, -1), len(first))
    seen = count > 0
    is_control = first["condition"].to_numpy() == CONTROL
    context = first["context"].to_numpy()
    controls = {context[i]: means[i] for i in np.flatnonzero(seen & is_control)}
    rows = np.flatnonzero(seen & ~is_control)
    if not len(rows):
        raise InputError("the split leaves no perturbed cell for training: the baselines have nothing to learn from")
    bare = sorted({context[i] for i in rows} - set(controls))
    if bare:
        raise InputError(f"no training control cells in context {some(bare)}: effects cannot be measured there")
    effects = np.stack([means[i] - controls[context[i]] for i in rows]).astype(np.float32)
    return TrainingData(
        genes=genes,
        conditions=tuple(first["condition"].to_numpy()[rows]),
        contexts=tuple(context[rows]),
        effects=effects,
        n_cells=count[rows],
        control_mean=controls,
        embeddings=dict(embeddings or {}),
        latent=latent,
    )


def training_data_from_effects(
    effects: AnnData,
    split: Split,
    embeddings: Mapping[str, Embedding] | None = None,
    latent: Latent | None = None,
) -> TrainingData:
    """Training effects of a table of effects, one row per condition (and context).

    Args:
        effects: X is the difference of mean log-expression to control.
        split: which rows are for training.
        embeddings: vectors of perturbed genes, for the baselines that use them.
        latent: a latent space of training cells over the same genes, for the baselines that use one.

    Raises:
        InputError: no row of the table is in the training part.
    """
    condition, context = effects.obs["condition"].astype(str).to_numpy(), _contexts(effects.obs)
    rows = np.flatnonzero((np.asarray(split.assign(effects.obs)) == "train") & (condition != CONTROL))
    if not len(rows):
        raise InputError(
            "the split leaves no row of the effects for training: the baselines have nothing to learn from"
        )
    x = effects.X if isinstance(effects.X, np.ndarray) else effects.X.toarray()
    return TrainingData(
        genes=tuple(map(str, effects.var_names)),
        conditions=tuple(condition[rows]),
        contexts=tuple(context[rows]),
        effects=np.asarray(x[rows], np.float32),
        n_cells=np.zeros(len(rows), np.int64),
        embeddings=dict(embeddings or {}),
        latent=latent,
    )


def as_effects(
    model: Model, conditions: Sequence[str], contexts: Sequence[str] | None = None
) -> tuple[AnnData, list[Skipped]]:
    """Predictions as a table of effects, and the conditions that the baseline has no answer for."""
    keys = model._keys(conditions, contexts)
    x = model.predict(conditions, contexts)
    able = ~np.isnan(x).any(axis=1)
    obs = pd.DataFrame(keys, columns=["condition", "context"])[able]
    obs.index = [f"{c}@{k}" for c, k in zip(obs["condition"], obs["context"], strict=True)]
    table = AnnData(x[able], obs=obs, var=pd.DataFrame(index=list(model.genes)))
    table.uns["scbig"] = {"schema": 1, "kind": "effects", "method": model.name}
    return table, model.skipped(conditions, contexts)


def as_cells(
    model: Model,
    conditions: Sequence[str],
    control_cells: AnnData,
    n_cells: int,
    seed: int,
    contexts: Sequence[str] | None = None,
    how: str = "shifted",
    perturbed_cells: AnnData | None = None,
) -> tuple[AnnData, list[Skipped]]:
    """Predictions as cells: real cells of the same context, moved to where the predicted effect says.

    The values are not clipped at zero, so that a shifted mean moves by exactly the effect.

    Args:
        model: a fitted baseline.
        conditions: canonical conditions.
        control_cells: log-expression of control cells; all its cells are used as controls.
        n_cells: cells per condition; fewer where the context has fewer cells to draw, for none is drawn twice.
        seed: of the draw.
        contexts: one per condition.
        how: ``"shifted"``, control cells plus the effect; or ``"resampled"``, the mean of the controls plus the
            effect plus the residuals of perturbed training cells, each from the mean of its condition: a spread
            as wide as perturbed cells have, rather than controls.
        perturbed_cells: the training cells to resample, with ``obs["condition"]``.

    Returns:
        Cells (``uns["scbig"]["kind"] == "cells"``, ``obs["source_cell"]`` names the cell moved), and what was
        skipped.

    Raises:
        InputError: cells with other genes than the model, a context without any, no cells to resample, or
            another ``how``.
    """
    if how not in ("shifted", "resampled") or (how == "resampled") != (perturbed_cells is not None):
        raise InputError(
            f"cells are 'shifted' controls or 'resampled' perturbed_cells, which are then given; not '{how}'"
        )
    for what, each in (("control", control_cells), ("perturbed", perturbed_cells)):
        if each is not None and tuple(map(str, each.var_names)) != model.genes:
            raise InputError(f"the {what} cells have other genes, or in another order, than the baseline {model.name}")
    source = control_cells if perturbed_cells is None else perturbed_cells
    pool, keys = _contexts(source.obs), model._keys(conditions, contexts)
    bare = sorted({k for _, k in keys} - set(pool) | {k for _, k in keys} - set(_contexts(control_cells.obs)))
    if bare:
        raise InputError(f"no cells in context {some(bare)} to move by the predicted effects")
    # What takes a perturbed cell to its residual about the mean of the controls, by group of cells.
    group, moves = (None, None) if perturbed_cells is None else _to_control(perturbed_cells, control_cells)
    blocks, labels = [], []
    effects = model.predict(conditions, contexts)
    for (condition, context), effect in zip(keys, effects, strict=True):
        if np.isnan(effect).any():
            continue
        have = np.flatnonzero(pool == context)
        draw = generator(seed, f"{condition}@{context}").choice(have, min(n_cells, len(have)), replace=False)
        x = source.X[draw]
        x = (x if isinstance(x, np.ndarray) else x.toarray()).astype(np.float32)
        blocks.append(x + effect if moves is None else x + moves[group[draw]] + effect)
        labels += [(condition, context, str(source.obs_names[i])) for i in draw]
    obs = pd.DataFrame(labels, columns=["condition", "context", "source_cell"])
    obs.index = obs.index.astype(str)
    x = np.concatenate(blocks) if blocks else np.zeros((0, len(model.genes)), np.float32)
    cells = AnnData(x, obs=obs, var=pd.DataFrame(index=list(model.genes)))
    cells.uns["scbig"] = {"schema": 1, "kind": "cells", "method": model.name}
    return cells, model.skipped(conditions, contexts)


def _to_control(perturbed: AnnData, control: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """The condition and context of each perturbed cell as a number, and the shift from their mean to the controls'."""
    keys = pd.DataFrame(
        {"context": _contexts(perturbed.obs), "condition": perturbed.obs["condition"].astype(str).array}
    )
    grouped = keys.groupby(["context", "condition"], sort=True)
    group = grouped.ngroup().to_numpy()
    contexts = [k for k, _ in grouped.groups]
    means, _ = group_means(perturbed.X, group, len(contexts))
    where = sorted(set(_contexts(control.obs)))
    base, _ = group_means(control.X, np.searchsorted(where, _contexts(control.obs)), len(where))
    to = [base[where.index(k)] if k in where else np.full(means.shape[1], np.nan) for k in contexts]
    return group, (np.stack(to) - means).astype(np.float32)


def one_context(data: TrainingData) -> str:
    """The context meant where none is given: the first in alphabetical order."""
    return min(data.contexts)


def fitted_contexts(data: TrainingData) -> list[str]:
    """The contexts to fit in, and last, where there are several, an empty name for all of them together."""
    contexts = sorted(set(data.contexts))
    return contexts if len(contexts) == 1 else [*contexts, ""]


def missing_singles(condition: str, table: Mapping[str, np.ndarray]) -> str:
    """Why a sum of single effects cannot be formed, or an empty string."""
    if condition == CONTROL:
        return ""
    absent = [g for g in genes_of(condition) if g not in table]
    return f"no training effect of the single perturbation: {some(absent)}" if absent else ""
