"""Features for clustering that hold what genes do in the screen, beside what is known of them ("update by perturbation")."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float

from scbig.data.conditions import CONTROL
from scbig.errors import InputError
from scbig.modules.spherical import normalize

__all__ = ["mean_effects", "with_responses"]


def mean_effects(
    blocks: Iterable[sp.csr_matrix], obs: pd.DataFrame, train: Bool[np.ndarray, " cells"]
) -> Float[np.ndarray, "conditions genes"]:
    """Mean of the training cells of every condition minus that of the training controls of the same context.

    Args:
        blocks: log-expression of the training cells in their order, in pieces of any size, ``[cells, genes]``.
        obs: of all cells, with condition and context.
        train: cells of the training part; no other is looked at.

    Raises:
        InputError: no condition of the training part has controls in its context.
    """
    names = obs.loc[np.asarray(train), ["condition", "context"]].astype(str)
    group, keys = pd.factorize(pd.MultiIndex.from_frame(names))
    total, start = None, 0
    for block in blocks:
        part = group[start : start + block.shape[0]]
        member = sp.csr_array((np.ones(len(part)), (part, np.arange(len(part)))), shape=(len(keys), len(part)))
        sums = (member @ block.astype(np.float64)).toarray()
        total = sums if total is None else total + sums
        start += block.shape[0]
    means = {} if total is None else dict(zip(keys, total / np.bincount(group)[:, None], strict=True))
    effects = [
        mean - means[(CONTROL, context)]
        for (condition, context), mean in means.items()
        if condition != CONTROL and (CONTROL, context) in means
    ]
    if not effects:
        raise InputError(
            "--config.modules.response_weight needs training conditions with controls of their context, and there are "
            "none; set it to 0.0"
        )
    return np.stack(effects)


def with_responses(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    effects: Float[np.ndarray, "conditions genes"],
    weight: float,
) -> tuple[Float[np.ndarray, "genes features"], Bool[np.ndarray, " genes"]]:
    """Embeddings beside responses, so that the cosine of two genes is a weighted mean of those of the two parts.

    The response part of a gene is its effects, standardised over the conditions: the cosine of two genes' responses is
    their correlation. Both parts have unit length before ``√(1 − weight)`` and ``√weight`` scale them, as in the authors'
    code. A gene without an embedding is known by its response alone, one that never varies by its embedding alone.

    Args:
        vectors: embeddings, ``[genes, d]``.
        mask: genes with an embedding.
        effects: mean effects, of training conditions only, ``[conditions, genes]``.
        weight: of the responses, from 0 to 1.

    Returns:
        Features, and which genes have any.

    Raises:
        InputError: a weight that is not between 0 and 1, or fewer than two effects.
    """
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"--config.modules.response_weight={weight} does not lie between 0 and 1")
    if len(effects) < 2:
        raise InputError(
            "--config.modules.response_weight needs two training conditions or more: one alone tells genes apart by its "
            "size only; set it to 0.0"
        )
    spread = effects.std(axis=0)
    varies = spread > 1e-9
    scores = np.where(varies, (effects - effects.mean(axis=0)) / np.where(varies, spread, 1.0), 0.0)
    known = normalize(np.where(mask[:, None], vectors, 0.0).astype(np.float32))
    responses = normalize(scores.T.astype(np.float32))
    features = np.hstack([np.sqrt(1.0 - weight) * known, np.sqrt(weight) * responses]).astype(np.float32)
    return features, (mask & (weight < 1.0)) | (varies & (weight > 0.0))
