"""The anchor of a run: a fitted predictor of mean effects, what it rests on, and how much may be added to it."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scbig import baselines
from scbig.anchor.conformal import Calibration
from scbig.anchor.crossfit import KINDS, kind_of
from scbig.anchor.gates import CLOSED, Gate, as_records
from scbig.anchor.intervals import Intervals
from scbig.baselines import Embedding, Model, TrainingData
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some
from scbig.files import atomic

__all__ = ["Anchor", "check_method", "fitter", "mean_skill", "restricted", "rounded", "save_no_anchor"]


def check_method(method: str) -> None:
    """Refuses what cannot be an anchor.

    Raises:
        InputError: no such baseline, or one that needs a latent of cells.
    """
    able = [name for name in baselines.REGISTRY if name not in baselines.ON_LATENT]
    if method not in able:
        raise InputError(f"no anchor '{method}'; there are: {some(able, 30)}; or none, --config.anchor.method=\"\"")


def fitter(method: str, settings: Mapping[str, Any] | None = None, seed: int = 0) -> Callable[[TrainingData], Model]:
    """The function that fits the method, ``TrainingData -> Model``, with the settings and the seed that it takes."""
    check_method(method)
    taken = inspect.signature(baselines.REGISTRY[method]).parameters
    options = ({"seed": seed} if "seed" in taken else {}) | dict(settings or {})

    def fit(data: TrainingData) -> Model:
        return baselines.fit(method, data, **options)

    return fit


def rounded(embedding: Embedding) -> Embedding:
    """Vectors as they are kept with a run, in half precision: what is loaded equals what was fitted."""
    scale = np.abs(embedding.vectors).max(initial=1e-30)
    vectors = (embedding.vectors / scale).astype(np.float16).astype(np.float32)
    return replace(embedding, vectors=vectors)


def restricted(embeddings: Mapping[str, Embedding], genes: Sequence[str]) -> dict[str, Embedding]:
    """The same for a few genes: what is fitted many times need not carry all others along."""
    out = {}
    for source, each in embeddings.items():
        place = {g: i for i, g in enumerate(each.genes)}
        known = [g for g in genes if g in place]
        rows = [place[g] for g in known]
        out[source] = Embedding(tuple(known), each.vectors[rows], each.mask[rows])
    return out


@dataclass(frozen=True)
class Anchor:
    """Predicts the mean effect of every condition; what :mod:`scbig.predict` moves control cells by.

    Attributes:
        method: the baseline.
        data: what it is fitted on.
        settings: its options, so that a loaded anchor need not search for them again.
        gates: how much of the flow's residual is kept, by kind of condition.
        skill: mean correlation of out-of-fold with measured effects, both taken to the training mean, by kind.
        move: how cells are moved.
        seed: of the fit.
        intervals: how far off it was where it was fitted without a condition; None where it never was.
    """

    method: str
    data: TrainingData
    settings: Mapping[str, Any] = field(default_factory=dict)
    gates: Mapping[str, Gate] = field(default_factory=dict)
    skill: Mapping[str, float] = field(default_factory=dict)
    move: str = "thin"
    seed: int = 0
    intervals: Intervals | None = None

    @cached_property
    def model(self) -> Model:
        """The fitted baseline; fitted when first asked."""
        return fitter(self.method, self.settings, self.seed)(self.data)

    @cached_property
    def _measured(self) -> frozenset[tuple[str, str]]:
        return frozenset(zip(self.data.conditions, self.data.contexts, strict=True))

    @cached_property
    def _mean(self) -> Model:
        return baselines.fit("mean", self.data)

    def kind(self, condition: str, context: str) -> str:
        """What is known of a condition, one of ``KINDS``."""
        return kind_of(self._measured, condition, context)

    def gate(self, condition: str, context: str) -> Gate:
        """How much of the flow's residual is kept for a condition; nothing for control."""
        return CLOSED if condition == CONTROL else self.gates.get(self.kind(condition, context), CLOSED)

    def effect(self, condition: str, context: str) -> Float[np.ndarray, " genes"]:
        """The mean effect on log-expression; the mean of the training effects where the method has no answer."""
        told = self.model.rule(condition, context)
        return np.asarray(self._mean.rule(condition, context) if isinstance(told, str) else told, np.float32)

    def account(self, condition: str, context: str) -> dict[str, float | str]:
        """What the prediction of a condition rests on.

        Returns:
            ``kind``, ``basis``, ``skill`` (correlation to be expected; of the condition where the method says so, else
            of its kind in cross-fitting; missing where nothing is known), ``kept`` (share of the method's deviation
            from the simpler answer), ``mean_gate`` and ``shape_gate``, and ``because`` where the method had no answer.
        """
        kind, gate = self.kind(condition, context), self.gate(condition, context)
        told = self.model.rule(condition, context)
        found: dict[str, float | str] = {"kind": kind, "basis": self.method}
        if kind in self.skill:
            found["skill"] = self.skill[kind]
        if isinstance(told, str):
            found |= {"basis": "mean of the training effects", "because": told, "kept": 0.0}
        else:
            found |= dict(self.model.account(condition, context))
        return found | {"mean_gate": gate.mean, "shape_gate": gate.shape}

    def interval(
        self, conditions: Sequence[str], contexts: Sequence[str], level: float | int = 0.9, modules: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Intervals of the effects, by gene or of module means; NaN for measured conditions and where none can be stated.

        Args:
            conditions: canonical conditions.
            contexts: one for each.
            level: share of genes to be covered, on average over new conditions of a kind.
            modules: of the mean effects of modules, in the order of ``intervals.calibration.modules``.
        """
        effects = np.stack([self.effect(c, k) for c, k in zip(conditions, contexts, strict=True)])
        kinds = [self.kind(c, k) for c, k in zip(conditions, contexts, strict=True)]
        if self.intervals is None:
            nothing = np.full(effects.shape, np.nan)
            return nothing, nothing
        needed = sorted({g for c in (*conditions, *self.intervals.conditions) for g in genes_of(c)})
        few = replace(self.data, embeddings=restricted(self.data.embeddings, needed))
        return self.intervals.of(few, conditions, kinds, effects, level, modules)

    def save(self, path: Path) -> None:
        """Writes training effects, vectors of perturbations and settings: all that a prediction needs."""
        d = self.data
        arrays: dict[str, np.ndarray] = {
            "genes": np.array(d.genes, str), "conditions": np.array(d.conditions, str),
            "contexts": np.array(d.contexts, str), "effects": d.effects, "n_cells": np.asarray(d.n_cells, np.int64),
            "about": np.array(json.dumps({
                "method": self.method, "settings": _plain(self.model.settings), "gates": as_records(self.gates),
                "skill": dict(self.skill), "move": self.move, "seed": self.seed,
            })),
        }  # fmt: skip
        if self.intervals is not None:
            arrays |= {f"interval:{name}": each for name, each in self.intervals.calibration.arrays().items()}
            arrays["calibrated"], arrays["errors"] = np.array(self.intervals.conditions, str), self.intervals.errors
        for name, mean in d.control_mean.items():
            arrays[f"control:{name}"] = np.asarray(mean, np.float64)
        for name, each in d.embeddings.items():
            arrays[f"genes:{name}"] = np.array(each.genes, str)
            arrays[f"mask:{name}"] = each.mask
            arrays[f"vectors:{name}"] = each.vectors.astype(np.float16)
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> Anchor | None:
        """Reads what :meth:`save` wrote; None where the run has no anchor.

        Raises:
            InputError: where the file is damaged.
        """
        try:
            # Opened here, since a damaged archive is not closed by what reads it.
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if not about["method"]:
                    return None
                sources = [name.removeprefix("vectors:") for name in file.files if name.startswith("vectors:")]
                data = TrainingData(
                    genes=tuple(file["genes"].tolist()),
                    conditions=tuple(file["conditions"].tolist()),
                    contexts=tuple(file["contexts"].tolist()),
                    effects=file["effects"],
                    n_cells=file["n_cells"],
                    control_mean={
                        name.removeprefix("control:"): file[name] for name in file.files if name.startswith("control:")
                    },
                    embeddings={
                        name: Embedding(
                            tuple(file[f"genes:{name}"].tolist()),
                            file[f"vectors:{name}"].astype(np.float32),
                            file[f"mask:{name}"],
                        )
                        for name in sources
                    },
                )
                intervals = None
                if "calibrated" in file.files:
                    intervals = Intervals(
                        Calibration.of_arrays(
                            {n.removeprefix("interval:"): file[n] for n in file.files if n.startswith("interval:")}
                        ),
                        tuple(file["calibrated"].tolist()),
                        file["errors"],
                    )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            raise InputError(f"{path} is damaged ({problem}); rerun `scbig train --force`") from problem
        gates = {kind: Gate(**record) for kind, record in about["gates"].items()}
        return cls(
            about["method"], data, about["settings"], gates, about["skill"], about["move"], about["seed"], intervals
        )


def save_no_anchor(path: Path) -> None:
    """Writes that a run has no anchor."""
    with atomic(path) as temporary:
        np.savez_compressed(temporary, about=np.array(json.dumps({"method": ""})))


def _plain(value: Any) -> Any:
    """Settings as JSON can hold them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def mean_skill(kinds: Sequence[str], skill: Float[np.ndarray, " rows"]) -> dict[str, float]:
    """Mean out-of-fold skill by kind, of the kinds that were left out."""
    values = {k: skill[[i for i, each in enumerate(kinds) if each == k]] for k in KINDS}
    return {k: float(np.nanmean(v)) for k, v in values.items() if len(v) and np.isfinite(v).any()}
