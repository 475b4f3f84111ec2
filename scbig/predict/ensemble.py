"""Runs that differ in their seed, sampled together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from scbig.errors import InputError
from scbig.predict import output, tiles
from scbig.predict.sampler import Predictor, parts

__all__ = ["Ensemble"]


@dataclass(frozen=True)
class Ensemble:
    """Several runs of one configuration that differ in their seed; cells come from each in turn."""

    members: tuple[Predictor, ...]

    @property
    def var(self) -> pd.DataFrame:
        """The genes."""
        return self.members[0].var

    def sample(self, conditions: Sequence[str], n_cells: int = 500, **options: Any) -> ad.AnnData:
        """As :meth:`Predictor.sample`; ``varm["seed_spread"]`` is the standard deviation of the mean over the runs."""
        return output.collect(self.population(conditions, n_cells, **options))

    def write(self, path: str | os.PathLike, conditions: Sequence[str], n_cells: int = 500, **options: Any) -> int:
        """As :meth:`Predictor.write`."""
        population = self.population(conditions, n_cells, **options)
        output.write(population, path)
        return len(population.obs)

    def population(self, conditions: Sequence[str], n_cells: int, **options: Any) -> output.Population:
        """The cells of :meth:`sample`, drawn and named but not computed yet: those of the first run, then the next."""
        genes = list(self.var.index)
        if any(list(member.var.index) != genes for member in self.members[1:]):
            raise InputError("the runs of an ensemble must have the same genes; they were prepared differently")
        # Each gives as many cells as any, so that the means compared are of equal worth; some drop their last.
        share, n_runs = -(-n_cells // len(self.members)), len(self.members)
        given = [member.population(conditions, share, **options) for member in self.members]
        sizes = [n_cells // n_runs + (run < n_cells % n_runs) for run in range(n_runs)]
        n_groups = len(given[0].obs) // share
        kept = [(np.arange(n_groups)[:, None] * share + np.arange(size)).ravel() for size in sizes]
        edges = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])])
        both = output.Moments(n_groups, len(genes))
        own = [output.Moments(n_groups, len(genes)) for _ in given]

        def chunks() -> Iterator[tiles.Chunk]:
            for each, moments, size in zip(given, own, sizes, strict=True):
                done = 0
                for chunk in each.chunks():
                    chosen = np.arange(done, done + len(chunk.x)) % share < size
                    for place, part in parts(done, len(chunk.x), share):
                        moments.add(place, chunk.x[part])
                        both.add(place, chunk.x[part][chosen[part]])
                    done += len(chunk.x)
                    yield tiles.Chunk(chunk.latent[chosen], chunk.x[chosen])

        def names(start: int, stop: int) -> list[str]:
            found = []
            for run, (each, rows) in enumerate(zip(given, kept, strict=True)):
                inside = rows[max(start - edges[run], 0) : max(stop - edges[run], 0)]
                if len(inside):
                    all_names = each.names(int(inside[0]), int(inside[-1]) + 1)
                    found += [f"{all_names[row - inside[0]]}-r{run}" for row in inside]
            return found

        def varm() -> dict[str, pd.DataFrame]:
            tables = [each.varm() for each in given]
            first = tables[0].pop("spread")
            like = {"index": first.index, "columns": first.columns}
            means = np.stack([moments.mean for moments in own])
            # What every run says of its anchor, on average.
            shared = {name: pd.DataFrame(np.mean([t[name] for t in tables], axis=0), **like) for name in tables[0]}
            return shared | {
                "spread": pd.DataFrame(both.spread().T, **like),
                "seed_spread": pd.DataFrame(means.std(axis=0, ddof=1).T, **like),
            }

        obs = _joined([each.obs.iloc[rows] for each, rows in zip(given, kept, strict=True)])
        # Members share their configuration and so its name.
        runs = pd.Categorical([f"{member.name}-r{run}" for run, member in enumerate(self.members)])
        obs["run"] = runs.repeat([len(rows) for rows in kept])
        return output.Population(obs, names, self.var, given[0].about, given[0].n_latent, chunks, varm)


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; columns of categories stay such, whatever categories each has."""
    columns = {}
    for name in tables[0]:
        each = [table[name].array for table in tables]
        categories = isinstance(each[0].dtype, pd.CategoricalDtype)
        columns[name] = union_categoricals(each) if categories else np.concatenate(each)
    return pd.DataFrame(columns)
