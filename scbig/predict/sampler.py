"""Sampling populations of cells from a trained run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse as sp
from flax import nnx

from scbig import config as configuration
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some
from scbig.rng import generator
from scbig.run import Run
from scbig.training import assemble, sample_latents
from scbig.training.autoencoder import Autoencoder, decode_all
from scbig.training.vocabulary import Group, Vocabulary

__all__ = ["Ensemble", "Predictor", "load"]

_BLOCK = 4  # conditions in one compiled call


@partial(jax.jit, static_argnames=("graph", "steps", "solver", "guidance", "residual", "clip"))
def _sample(params, auto, conditions, z0, x0, typical, *, graph, steps, solver, guidance, residual, clip):
    """Latents and expression of one block of conditions, in one program."""
    network = nnx.merge(graph, params)
    z1 = sample_latents(network, network.encode(conditions), z0, steps, solver, guidance)
    x = jax.lax.map(auto.decode, z1)
    if residual:
        # What the decoder cannot tell of the control cell (counting noise above all) stays with the cell.
        # Centred on what is typical of all controls, so that a small draw of them adds spread but no bias.
        left = x0 - jax.lax.map(auto.decode, z0)
        x = x + left - jnp.mean(left, axis=1, keepdims=True) + typical[:, None]
    return z1, jnp.maximum(x, 0.0) if clip else x


@dataclass(frozen=True)
class Predictor:
    """A trained run, ready to sample from.

    Attributes:
        name: the run's name.
        settings: its configuration.
        auto: the autoencoder.
        graph: structure of the flow network.
        params: its parameters.
        vocabulary: what is known of perturbations.
        controls: ``obs`` of the control cells that populations start from.
        z0: their latents, ``[controls, latent]``.
        x0: their log-expression, CSR ``[controls, genes]``.
        typical: by context, mean of what the autoencoder cannot tell of its controls, ``[genes]``.
        var: the genes, as in the prepared data.
        about: normalisation of the prepared data.
    """

    name: str
    settings: Any
    auto: Autoencoder
    graph: Any
    params: Any
    vocabulary: Vocabulary
    controls: pd.DataFrame
    z0: np.ndarray
    x0: sp.csr_matrix
    typical: dict[str, np.ndarray]
    var: pd.DataFrame
    about: dict[str, Any]

    def sample(
        self,
        conditions: Sequence[str],
        n_cells: int = 500,
        *,
        context: str | Sequence[str] | None = None,
        dose: float = 0.0,
        seed: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> ad.AnnData:
        """Cells of each condition, seen in training or not.

        Args:
            conditions: such as ``["STAT1", "IFNGR2+JAK2", "control"]``, in any order of the genes.
            n_cells: cells of each. Their residuals are centred over the draw, so a single cell has none.
            context: cell line or cell type, or one for each condition; needed where the run has several.
            dose: of drugs.
            seed: of the control cells drawn; the run's by default.
            guidance: above 1 overstates what distinguishes the condition; needs training with null dropout.
            steps: of the solver.
            solver: ``euler``, ``midpoint``, ``heun`` or ``rk4``.

        Returns:
            ``X`` decoded log-expression in the units of the prepared data, ``obsm["X_latent"]``, and in ``obs`` the
            condition, context, batch and ``source_cell``, the control each cell started from.
            ``varm["spread"]`` is the standard deviation over the sampled cells of each condition.

        Raises:
            InputError: for a perturbation that no source knows, or an unknown context.
        """
        groups = self._groups(conditions, context, dose)
        if n_cells < 1:
            raise InputError(f"--n-cells {n_cells}: at least one cell per condition is needed")
        scale = self.settings.sample.guidance if guidance is None else guidance
        if scale != 1.0 and not self.settings.condition.null_dropout:
            raise InputError(f"guidance {scale} needs a run trained with --config.condition.null_dropout above 0")
        drawn = [self._draw(group, n_cells, self.settings.seed if seed is None else seed) for group in groups]
        options = {
            "graph": self.graph,
            "steps": steps or self.settings.flow.solver_steps,
            "solver": solver or self.settings.flow.solver,
            "guidance": float(scale),
            "residual": bool(self.settings.flow.residual),
            "clip": bool(self.settings.sample.clip),
        }
        given = self.vocabulary.conditions(groups)
        latents, cells = [], []
        for start in range(0, len(groups), _BLOCK):
            # The last block is filled up, so that one program serves any number of conditions.
            places = [min(start + k, len(groups) - 1) for k in range(_BLOCK)]
            block = given.take(jnp.asarray(places, jnp.int32))
            z0 = jnp.asarray(np.stack([self.z0[drawn[place]] for place in places]))
            x0 = jnp.asarray(np.stack([self.x0[drawn[place]].toarray() for place in places]))
            typical = jnp.asarray(np.stack([self.typical[groups[place].context] for place in places]))
            z1, x = _sample(self.params, self.auto, block, z0, x0, typical, **options)
            kept = min(_BLOCK, len(groups) - start)
            latents.append(np.asarray(z1[:kept]))
            cells.append(np.asarray(x[:kept]))
        return self._pack(groups, drawn, np.concatenate(latents), np.concatenate(cells))

    def _groups(self, conditions, context, dose) -> list[Group]:
        contexts = self.vocabulary.contexts
        names = [join(genes_of(name)) if genes_of(name) else CONTROL for name in conditions]
        if not names:
            raise InputError("no conditions to sample; name them, such as --conditions STAT1,IFNGR2+JAK2")
        if context is None:
            if len(contexts) > 1:
                raise InputError(f"this run has several contexts; choose one with --context: {', '.join(contexts)}")
            context = contexts[0]
        given = [context] * len(names) if isinstance(context, str) else list(context)
        if len(given) != len(names):
            raise InputError(f"{len(given)} contexts were given for {len(names)} conditions")
        repeated = [
            n
            for n in dict.fromkeys(names)
            if list(zip(names, given, strict=True)).count((n, given[names.index(n)])) > 1
        ]
        if repeated:
            raise InputError(f"{some(repeated)} is named twice among the conditions")
        return [Group(name, where, float(dose)) for name, where in zip(names, given, strict=True)]

    def _draw(self, group, n_cells, seed):
        pool = np.flatnonzero((self.controls["context"].astype(str) == group.context).to_numpy())
        if not len(pool):
            raise InputError(f"no control cells in context {group.context} to start from")
        # A stream for each condition: its cells do not depend on what else is asked for.
        rng = generator(seed, f"sample controls {group.condition}@{group.context}")
        return rng.choice(pool, n_cells, replace=len(pool) < n_cells)

    def _pack(self, groups, drawn, latents, cells) -> ad.AnnData:
        n_cells = latents.shape[1]
        source = self.controls.iloc[np.concatenate(drawn)]
        labels = [group.condition for group in groups]
        obs = pd.DataFrame(
            {
                "condition": pd.Categorical(np.repeat(labels, n_cells), categories=list(dict.fromkeys(labels))),
                "context": pd.Categorical(np.repeat([group.context for group in groups], n_cells)),
                "batch": pd.Categorical(source["batch"].astype(str).to_numpy()),
                "source_cell": source.index.to_numpy().astype(str),
            }
        )
        if any(group.dose for group in groups):
            obs["dose"] = np.repeat([group.dose for group in groups], n_cells)
        several = len({group.context for group in groups}) > 1
        tags = [f"{g.condition}:{g.context}" if several else g.condition for g in groups]
        obs.index = [f"{tag}-{number}" for tag in tags for number in range(n_cells)]
        result = ad.AnnData(cells.reshape(-1, cells.shape[-1]), obs=obs, var=self.var.copy())
        result.obsm["X_latent"] = latents.reshape(-1, latents.shape[-1])
        result.varm["spread"] = pd.DataFrame(cells.std(axis=1).T, index=self.var.index, columns=tags)
        result.uns["scbig"] = {"kind": "cells", "method": self.name, "predicted": True, **self.about}
        return result


@dataclass(frozen=True)
class Ensemble:
    """Several runs of one configuration that differ in their seed; cells come from each in turn."""

    members: tuple[Predictor, ...]

    def sample(self, conditions: Sequence[str], n_cells: int = 500, **options: Any) -> ad.AnnData:
        """As :meth:`Predictor.sample`; ``varm["seed_spread"]`` is the standard deviation of the mean over the runs."""
        share = -(-n_cells // len(self.members))
        parts = [member.sample(conditions, share, **options) for member in self.members]
        genes = parts[0].var_names
        for part in parts[1:]:
            if list(part.var_names) != list(genes):
                raise InputError("the runs of an ensemble must have the same genes; they were prepared differently")
        tags = list(parts[0].varm["spread"].columns)
        means = np.stack([part.X.reshape(len(tags), share, -1).mean(axis=1) for part in parts])
        order = np.arange(len(tags) * share).reshape(len(tags), share)
        sizes = [n_cells // len(parts) + (k < n_cells % len(parts)) for k in range(len(parts))]
        pieces = []
        for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            piece = part[order[:, :size].ravel()].copy()
            # Members share their configuration and so its name.
            piece.obs["run"] = f"{self.members[number].name}-r{number}"
            piece.obs_names = [f"{name}-r{number}" for name in piece.obs_names]
            pieces.append(piece)
        result = ad.concat(pieces, merge="same", uns_merge="same")
        result.varm["spread"] = pd.DataFrame(
            np.stack([result.X[_rows(result, tag, tags)].std(axis=0) for tag in tags], axis=1),
            index=genes,
            columns=tags,
        )
        result.varm["seed_spread"] = pd.DataFrame(means.std(axis=0, ddof=1).T, index=genes, columns=tags)
        result.uns["scbig"] = dict(parts[0].uns["scbig"])
        return result


def _rows(cells, tag, tags):
    """Rows of one condition, by the names that the members gave their cells."""
    return np.array([name.rsplit("-", 2)[0] == tag for name in cells.obs_names])


def load(runs: str | os.PathLike | Sequence[str | os.PathLike]) -> Predictor | Ensemble:
    """A trained run directory, or several of them as an ensemble over seeds.

    Raises:
        InputError: where a stage has not been run, or its files changed since.
    """
    if isinstance(runs, (str, os.PathLike)):
        return _load(Path(runs))
    members = tuple(_load(Path(folder)) for folder in runs)
    return members[0] if len(members) == 1 else Ensemble(members)


def _load(folder: Path) -> Predictor:
    run = Run(folder)
    if not run.path("config.json").exists():
        raise InputError(f"{folder} is not a run directory (no config.json); train one with `scbig run`")
    run.require(("prepare", "cluster", "pretrain", "train"))
    settings = configuration.read_json(run.path("config.json"))
    prepared = ad.read_h5ad(run.path("prepared.h5ad"), backed="r")
    var, about = prepared.var.copy(), dict(prepared.uns["scbig"])
    var["module"] = assemble.load_modules(run, var.index).module
    auto = assemble.load_autoencoder(run, settings, var.index)
    vocabulary = Vocabulary.load(run.path("flow/conditions.npz"))
    network = assemble.load_flow(run, settings, vocabulary)
    graph, params = nnx.split(network)
    latents = ad.read_zarr(run.path("latents.zarr"))
    is_control = (latents.obs["condition"].astype(str) == CONTROL).to_numpy()
    test = is_control & (latents.obs["part"].astype(str) == "test").to_numpy()
    # Held-out controls where the split has them: a prediction should not start from cells it was trained on.
    chosen = np.flatnonzero(test if test.any() else is_control)
    controls, z0 = latents.obs.iloc[chosen], np.asarray(latents.X, np.float32)[chosen]
    x0 = sp.csr_matrix(prepared.X[chosen], dtype=np.float32)
    prepared.file.close()
    kept = {key: about[key] for key in ("schema", "normalization", "target_sum", "size_factor") if key in about}
    return Predictor(
        name=settings.name,
        settings=settings,
        auto=auto,
        graph=graph,
        params=params,
        vocabulary=vocabulary,
        controls=controls,
        z0=z0,
        x0=x0,
        typical=_typical(auto, controls["context"].astype(str).to_numpy(), z0, x0),
        var=var,
        about=kept,
    )


def _typical(auto: Autoencoder, context: np.ndarray, z0: np.ndarray, x0: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Mean residual of the controls of each context, from at most 2,000 of them."""
    found = {}
    for name in np.unique(context):
        rows = np.flatnonzero(context == name)[:2000]
        found[name] = np.asarray(x0[rows].mean(axis=0)).ravel() - decode_all(auto, z0[rows]).mean(axis=0)
    return found
