"""A partition of genes into modules, by name, and its file."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from scbig.errors import InputError, some
from scbig.files import atomic

__all__ = ["Modules"]

_COLUMNS = ("gene", "module", "rank", "distance")
_SOFT_COLUMNS = ("second", "weight")


@dataclass(frozen=True, eq=False)
class Modules:
    """Genes in modules ``0 … K−1``, none of them empty.

    Attributes:
        genes: gene symbols, unique; the order of all arrays, ``[genes]``.
        module: the module of each gene, ``[genes]``.
        rank: place of the gene within its module, the closest to the centroid first, ``[genes]``.
        distance: cosine distance to the module's centroid, from 0 to 2; NaN where the gene has no embedding.
        history: the objective after every round of clustering; the kept partition has the least.
            Empty where nothing was optimised and for modules read from a file.
        extra: for soft modules the second module of each gene, ``[genes]``; None for a partition.
        weight: for soft modules the share of the first module, from 0.5 to 1, ``[genes]``.

    Raises:
        InputError: for a gene named twice, a module without genes, or ranks with gaps.
    """

    genes: tuple[str, ...]
    module: Int[np.ndarray, " genes"]
    rank: Int[np.ndarray, " genes"]
    distance: Float[np.ndarray, " genes"]
    history: tuple[float, ...] = ()
    extra: Int[np.ndarray, " genes"] | None = None
    weight: Float[np.ndarray, " genes"] | None = None

    def __post_init__(self):
        _check(self, "modules")

    @property
    def n_modules(self) -> int:
        """How many modules there are."""
        return int(self.module.max()) + 1

    @property
    def sizes(self) -> Int[np.ndarray, " modules"]:
        """Genes in each module (the first module of a gene, where there are two)."""
        return np.bincount(self.module, minlength=self.n_modules)

    def members(self, k: int) -> tuple[str, ...]:
        """The genes of module ``k`` by rank."""
        inside = np.flatnonzero(self.module == k)
        return tuple(self.genes[i] for i in inside[np.argsort(self.rank[inside])])

    def layout(
        self, overlapping: bool = False
    ) -> tuple[Int[np.ndarray, "modules slots"], Bool[np.ndarray, "modules slots"]]:
        """Where the genes of each module stand in ``genes``, padded to the largest module.

        Args:
            overlapping: soft modules only: a gene also takes a slot, after the others, in its second module.

        Returns:
            Positions, ``[modules, slots]``, 0 where padded, and which slots hold a gene.
        """
        rows = [np.flatnonzero(self.module == k) for k in range(self.n_modules)]
        rows = [inside[np.argsort(self.rank[inside])] for inside in rows]
        if overlapping and self.extra is not None:
            guests = [np.flatnonzero(self.extra == k) for k in range(self.n_modules)]
            rows = [np.concatenate(both) for both in zip(rows, guests, strict=True)]
        n_slots = max(map(len, rows))
        index = np.zeros((len(rows), n_slots), np.int32)
        mask = np.zeros((len(rows), n_slots), bool)
        for k, row in enumerate(rows):
            index[k, : len(row)], mask[k, : len(row)] = row, True
        return index, mask

    def reorder(self, genes: Sequence[str]) -> Modules:
        """The same modules with the genes in another order, matched by name.

        Args:
            genes: the same genes in any order.

        Raises:
            InputError: naming genes without a module, or module genes that are not in ``genes``.
        """
        place = {gene: i for i, gene in enumerate(self.genes)}
        if missing := [gene for gene in genes if gene not in place]:
            raise InputError(
                f"{len(missing)} genes have no module: {some(missing)}; cluster the genes of this panel anew"
            )
        wanted = set(genes)
        if absent := [gene for gene in self.genes if gene not in wanted]:
            raise InputError(
                f"{len(absent)} genes of the modules are not in the panel: {some(absent)}; "
                "cluster the genes of this panel anew"
            )
        order = np.array([place[gene] for gene in genes])
        return Modules(
            tuple(genes),
            self.module[order],
            self.rank[order],
            self.distance[order],
            self.history,
            None if self.extra is None else self.extra[order],
            None if self.weight is None else self.weight[order],
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a csv with the columns gene, module, rank, distance (and second, weight for soft modules).

        Rows stand by module and rank; a distance that is not known stays empty. The history is not stored.
        """
        soft = self.extra is not None
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(_COLUMNS + (_SOFT_COLUMNS if soft else ()))
            for i in np.lexsort((self.rank, self.module)):
                distance = "" if np.isnan(self.distance[i]) else repr(float(self.distance[i]))
                row = [self.genes[i], int(self.module[i]), int(self.rank[i]), distance]
                writer.writerow(row + ([int(self.extra[i]), repr(float(self.weight[i]))] if soft else []))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Modules:
        """Reads what `save` wrote; the genes stand by module and rank (see `reorder`).

        Raises:
            InputError: if the file is absent, lacks a column, or is not a partition: a gene named twice, a
                module without genes, or ranks with gaps.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the cluster stage first")
        with open(path, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {some(missing)}; a module file has {', '.join(_COLUMNS)}")
            rows = list(reader)
        if not rows:
            raise InputError(f"{path}: no genes; run the cluster stage again")
        soft = all(name in rows[0] for name in _SOFT_COLUMNS)

        def column(name: str, kind: type, empty: str | None = None) -> np.ndarray:
            values = []
            for line, row in enumerate(rows, start=2):
                text = row[name] or empty
                try:
                    values.append(kind(text))
                except (TypeError, ValueError):
                    raise InputError(f"{path}, line {line}: {row[name]!r} in column {name} is not a number") from None
            return np.array(values, np.int64 if kind is int else np.float64)

        return _from_columns(
            path,
            tuple(row["gene"] for row in rows),
            column("module", int),
            column("rank", int),
            column("distance", float, empty="nan"),
            column("second", int) if soft else None,
            column("weight", float) if soft else None,
        )


def _from_columns(path, genes, module, rank, distance, extra, weight) -> Modules:
    try:
        return Modules(genes, module, rank, distance, (), extra, weight)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check(modules: Modules, what: str) -> None:
    genes, module, rank = modules.genes, modules.module, modules.rank
    if not genes:
        raise InputError(f"{what}: no genes")
    if twice := [gene for gene, count in Counter(genes).items() if count > 1]:
        raise InputError(f"genes named more than once: {some(twice)}; every gene has one module")
    if any(not gene for gene in genes):
        raise InputError("a gene has an empty name; every row names a gene")
    if module.min() < 0:
        raise InputError(f"module {module.min()} of gene {genes[int(module.argmin())]} is negative")
    # A number far beyond the number of genes must not allocate that much.
    present = set(module.tolist())
    highest = max(present)
    if len(present) <= highest:
        gaps = [k for k in range(min(highest, 10 * len(genes))) if k not in present]
        raise InputError(f"modules without genes: {some(gaps)}; modules are numbered from 0 without gaps")
    for k in range(highest + 1):
        inside = np.sort(rank[module == k])
        if not np.array_equal(inside, np.arange(len(inside))):
            raise InputError(f"ranks of module {k} are not 0 to {len(inside) - 1}; each gene has its own")
    if (modules.extra is None) != (modules.weight is None):
        raise InputError("soft modules need both the second module and the weight of the first")
    if modules.extra is not None:
        _check_soft(modules, highest)


def _check_soft(modules: Modules, highest: int) -> None:
    wrong = (modules.extra < 0) | (modules.extra > highest) | (modules.extra == modules.module)
    if wrong.any():
        named = some(np.array(modules.genes)[wrong])
        raise InputError(f"the second module is absent or equals the first for genes {named}")
    bad = [
        gene
        for gene, share in zip(modules.genes, modules.weight.tolist(), strict=True)
        if math.isnan(share) or not 0 <= share <= 1
    ]
    if bad:
        raise InputError(f"weights of the first module must lie between 0 and 1; not so for genes {some(bad)}")
