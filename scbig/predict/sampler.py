"""Sampling populations of cells from a trained run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbig.anchor import Anchor
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some
from scbig.predict import output, tiles
from scbig.predict.anchored import AnchoredCells
from scbig.predict.counts import Counting
from scbig.predict.residuals import Residuals
from scbig.rng import generator
from scbig.training.autoencoder import Autoencoder
from scbig.training.vocabulary import Group, Vocabulary

__all__ = ["Predictor"]

_TYPICAL = 2000  # controls of a context that its mean residual is taken over


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
        var: the genes, as in the prepared data.
        about: normalisation of the prepared data.
        anchor: what controls are moved by before the flow; None where the run has none.
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
    var: pd.DataFrame
    about: dict[str, Any]
    anchor: Anchor | None = None

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
        """Cells of each condition, seen in training or not, in memory.

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
            ``varm["spread"]`` is the standard deviation over the sampled cells of each condition. With an anchor,
            ``uns["scbig"]["anchor"]`` says what each prediction rests on, ``varm["effect"]`` is the anchor's mean effect
            and ``varm["effect_low"]``, ``varm["effect_high"]`` its 90% interval (NaN for measured conditions).

        Raises:
            InputError: for a perturbation that no source knows, or an unknown context.
        """
        return output.collect(
            self.population(
                conditions,
                n_cells,
                context=context,
                dose=dose,
                seed=seed,
                guidance=guidance,
                steps=steps,
                solver=solver,
            )
        )

    def write(self, path: str | os.PathLike, conditions: Sequence[str], n_cells: int = 500, **options: Any) -> int:
        """The cells of :meth:`sample` to a file, chunk by chunk: memory does not grow with their number.

        Args:
            path: ends in ``.h5ad`` or ``.zarr``; written whole or not at all.
            conditions: as for :meth:`sample`.
            n_cells: cells of each.
            options: the other arguments of :meth:`sample`.

        Returns:
            How many cells were written.

        Raises:
            InputError: as :meth:`sample`, and for another ending of ``path``.
        """
        population = self.population(conditions, n_cells, **options)
        output.write(population, path)
        return len(population.obs)

    def population(
        self,
        conditions: Sequence[str],
        n_cells: int,
        *,
        context: str | Sequence[str] | None = None,
        dose: float = 0.0,
        seed: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> output.Population:
        """The cells of :meth:`sample`, drawn and named but not computed yet."""
        groups = self._groups(conditions, context, dose)
        if n_cells < 1:
            raise InputError(f"--n-cells {n_cells}: at least one cell per condition is needed")
        scale = self.settings.sample.guidance if guidance is None else guidance
        if scale != 1.0 and not self.settings.condition.null_dropout:
            raise InputError(f"guidance {scale} needs a run trained with --config.condition.null_dropout above 0")
        flow = self.settings.flow
        how = tiles.Solver(
            steps or flow.solver_steps, solver or flow.solver, float(scale), bool(self.settings.sample.clip)
        )
        given = self.vocabulary.conditions(groups)
        drawn = self._draw(groups, n_cells, self.settings.seed if seed is None else seed)
        several = len({group.context for group in groups}) > 1
        tags = [f"{g.condition}:{g.context}" if several else g.condition for g in groups]
        moments = output.Moments(len(groups), len(self.var))

        def chunks() -> Iterator[tiles.Chunk]:
            done = 0
            for chunk in self._stream(groups, given, drawn, how, self.settings.seed if seed is None else seed):
                for place, part in parts(done, len(chunk.x), n_cells):
                    moments.add(place, chunk.x[part])
                done += len(chunk.x)
                yield chunk

        return output.Population(
            obs=self._obs(groups, drawn),
            names=lambda start, stop: [f"{tags[row // n_cells]}-{row % n_cells}" for row in range(start, stop)],
            var=self.var,
            about={"kind": "cells", "method": self.name, "predicted": True, **self.about, **self._account(groups)},
            n_latent=self.z0.shape[1],
            chunks=chunks,
            varm=lambda: {
                name: pd.DataFrame(table.T, index=self.var.index, columns=tags)
                for name, table in {"spread": moments.spread(), **self._bounds(groups)}.items()
            },
        )

    @cached_property
    def residuals(self) -> Residuals:
        """What the decoder cannot tell of each control."""
        return Residuals(self.auto, self.z0, self.x0)

    def typical(self, context: str) -> np.ndarray:
        """Mean residual of the controls of a context, ``[genes]``, from at most 2,000 of them."""
        return self.residuals.mean(self._pool(context)[:_TYPICAL])

    def _pool_mean(self, context: str) -> np.ndarray:
        """Mean log-expression of the controls of a context, ``[genes]``."""
        pool = self._pool(context)
        return np.asarray(self.x0[pool].mean(axis=0, dtype=np.float64)).ravel()

    def _account(self, groups: Sequence[Group]) -> dict[str, pd.DataFrame]:
        """What the anchor's prediction of each group rests on."""
        if self.anchor is None:
            return {}
        rows = [
            {"condition": g.condition, "context": g.context, **self.anchor.account(g.condition, g.context)}
            for g in groups
        ]
        table = pd.DataFrame(rows)
        text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
        table[text] = table[text].fillna("")
        return {"anchor": table.set_axis([str(i) for i in range(len(table))], axis=0)}

    def _bounds(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """The anchor's effects and their intervals, ``[groups, genes]``."""
        if self.anchor is None:
            return {}
        keys = [group.condition for group in groups], [group.context for group in groups]
        effect = np.stack([self.anchor.effect(*key) for key in zip(*keys, strict=True)])
        low, high = self.anchor.interval(*keys)
        return {"effect": effect, "effect_low": low.astype(np.float32), "effect_high": high.astype(np.float32)}

    def _stream(self, groups, given, drawn, how, seed) -> Iterator[tiles.Chunk]:
        left = offset = counting = None
        if self.auto.counts is not None:
            counting = Counting(self.auto, self.controls["depth"].to_numpy(), groups, seed)
        elif self.settings.flow.residual and self.anchor is None:
            # What the decoder cannot tell of the control cell stays with the cell. Centred on what is typical of all
            # controls, so that a small draw of them adds spread but no bias.
            typical = {name: self.typical(name) for name in {group.context for group in groups}}
            self.residuals.require(drawn)
            left = self.residuals.table
            offset = np.stack(
                [typical[group.context] - self.residuals.mean(rows) for group, rows in zip(groups, drawn, strict=True)]
            )
        encoded = tiles.encode(self.graph, self.params, given)
        if self.anchor is not None:
            means = {name: self._pool_mean(name) for name in {group.context for group in groups}}
            return AnchoredCells(
                self.anchor, self.auto, self.graph, self.params, encoded, groups, drawn, self.x0,
                np.stack([means[group.context] for group in groups]), how, seed, counting,
                None if counting is None else self.controls["depth"].to_numpy(),
            ).chunks()  # fmt: skip
        return tiles.stream(self.graph, self.params, self.auto, encoded, drawn, self.z0, left, offset, how, counting)

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
        pairs = pd.Series(list(zip(names, given, strict=True)))
        repeated = dict.fromkeys(name for name, _ in pairs[pairs.duplicated()])
        if repeated:
            raise InputError(f"{some(repeated)} is named twice among the conditions")
        return [Group(name, where, float(dose)) for name, where in zip(names, given, strict=True)]

    def _pool(self, context: str) -> np.ndarray:
        pool = np.flatnonzero((self.controls["context"].astype(str) == context).to_numpy())
        if not len(pool):
            raise InputError(f"no control cells in context {context} to start from")
        return pool

    def _draw(self, groups, n_cells, seed) -> np.ndarray:
        """Places of the controls that the cells of each group start from, ``[groups, cells]``."""
        pools = {context: self._pool(context) for context in {group.context for group in groups}}
        drawn = np.empty((len(groups), n_cells), np.int32)
        for place, group in enumerate(groups):
            # A stream for each condition: its cells do not depend on what else is asked for.
            rng = generator(seed, f"sample controls {group.condition}@{group.context}")
            pool = pools[group.context]
            drawn[place] = rng.choice(pool, n_cells, replace=len(pool) < n_cells)
        return drawn

    def _obs(self, groups, drawn) -> pd.DataFrame:
        """Numbers and codes only: a string for each of a million cells would take more memory than the sampling."""
        n_cells, source = drawn.shape[1], drawn.ravel()
        labels = pd.Categorical([group.condition for group in groups])
        labels = labels.reorder_categories(list(dict.fromkeys(group.condition for group in groups)))
        batch = pd.Categorical(self.controls["batch"].astype(str))
        cells = pd.Categorical.from_codes(source, self.controls.index.astype(str))
        obs = pd.DataFrame(
            {
                "condition": labels.repeat(n_cells),
                "context": pd.Categorical([group.context for group in groups]).repeat(n_cells),
                "batch": batch.take(source).remove_unused_categories(),
                "source_cell": cells.remove_unused_categories(),
            }
        )
        if any(group.dose for group in groups):
            obs["dose"] = np.repeat([group.dose for group in groups], n_cells)
        return obs


def parts(start: int, length: int, n_cells: int) -> Iterator[tuple[int, slice]]:
    """Which cells of a chunk, ``length`` of them from ``start``, belong to which condition of ``n_cells`` cells."""
    stop = start + length
    for place in range(start // n_cells, -(-stop // n_cells)):
        first, last = max(start, place * n_cells), min(stop, (place + 1) * n_cells)
        yield place, slice(first - start, last - start)
