"""Which embeddings a baseline reads, and how several are brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from scbig.baselines.base import TrainingData
from scbig.errors import InputError, some

__all__ = ["Sources", "chosen_sources", "pairwise", "side_by_side", "unit_sources"]

Sources = Mapping[str, Mapping[str, np.ndarray]]
"""Known vectors by source and gene, float64; a gene that a source does not know is not in it."""


def chosen_sources(data: TrainingData, embedding: str | Sequence[str] | None, who: str) -> Sources:
    """The known vectors of the sources asked for.

    Args:
        data: training effects with embeddings.
        embedding: one source, several, or None for all of them.
        who: the baseline, for the message.

    Raises:
        InputError: a source that is not there, or none at all.
    """
    names = [embedding] if isinstance(embedding, str) else list(data.embeddings if embedding is None else embedding)
    absent = [name for name in names if name not in data.embeddings]
    if absent or not names:
        what = f"no embedding '{some(absent)}'" if absent else "no embedding"
        raise InputError(f"{what} for the baseline {who}; given: {some(data.embeddings) or 'none'}")
    return {name: data.embeddings[name].rows() for name in names}


def unit_sources(data: TrainingData, embedding: str | Sequence[str] | None, who: str) -> Sources:
    """The known vectors of the sources asked for, at length 1; a source that knows nothing is left out.

    Raises:
        InputError: as ``chosen_sources``, or no vector at all.
    """
    asked = chosen_sources(data, embedding, who)
    found = {name: known for name, rows in asked.items() if (known := _unit(rows))}
    if not found:
        raise InputError(f"the embeddings {some(asked)} for the baseline {who} know no gene")
    return found


def pairwise(
    source: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]
) -> Float[np.ndarray, "rows columns"]:
    """Inner products of the vectors of two lists of genes; NaN where the source does not know both."""
    out = np.full((len(rows), len(columns)), np.nan)
    at = [i for i, g in enumerate(rows) if g in source]
    to = [j for j, g in enumerate(columns) if g in source]
    if at and to:
        left, right = (
            np.stack([source[g] for g in genes]) for genes in ([rows[i] for i in at], [columns[j] for j in to])
        )
        out[np.ix_(at, to)] = left @ right.T
    return out


def side_by_side(sources: Sources) -> dict[str, np.ndarray]:
    """One vector per gene: the unit vectors of every source in turn, zeros for a source that lacks the gene."""
    scaled = [known for rows in sources.values() if (known := _unit(rows))]
    sizes = [len(next(iter(rows.values()))) for rows in scaled]
    genes = sorted(set().union(*scaled))
    return {g: np.concatenate([rows.get(g, np.zeros(n)) for rows, n in zip(scaled, sizes, strict=True)]) for g in genes}


def _unit(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Vectors at length 1; a vector of zeros has no direction and is dropped."""
    return {gene: v / size for gene, v in rows.items() if (size := np.linalg.norm(v)) > 0}
