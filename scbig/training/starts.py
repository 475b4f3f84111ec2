"""What an anchored flow starts from: control cells moved by the anchor's effect, as latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.anchor import move
from scbig.data.store import Rows
from scbig.training.autoencoder import Autoencoder, encode_all

__all__ = ["Job", "Starts"]

Job = tuple[int, np.ndarray]
"""A group, and the cells to move for it."""
_AT_ONCE = 2048  # cells encoded together


class Starts:
    """Moves control cells for each group.

    Args:
        x: log-expression of all cells ``[cells, genes]``, on disk or in memory.
        controls: places of the cells that may be moved; they are kept in memory, sparse.
        effects: the anchor's effect for each group, ``[groups, genes]``.
        auto: encodes the moved cells.
        project: from log-expression to the evaluation space.
        how: how cells are moved; see :func:`scbig.anchor.move`.
    """

    def __init__(
        self,
        x: Rows,
        controls: Int[np.ndarray, " controls"],
        effects: Float[np.ndarray, "groups genes"],
        auto: Autoencoder,
        project: Callable[[np.ndarray], np.ndarray],
        how: str,
    ):
        self._places = np.unique(controls)
        self._x: sp.csr_matrix = x[self._places]
        self._effects, self._auto, self._project, self._how = effects, auto, project, how

    def cells(self, group: int, rows: Int[np.ndarray, " cells"]) -> Float[np.ndarray, "cells genes"]:
        """Log-expression of the given controls, moved for a group."""
        at = np.searchsorted(self._places, rows)
        names = np.stack([np.full(len(rows), group), rows], axis=1)
        return move(self._x[at].toarray(), self._effects[group], self._how, names)

    def latents(self, jobs: Sequence[Job]) -> list[Float[np.ndarray, "cells latent"]]:
        """Latents of the moved cells of each job."""
        parts = [encode_all(self._auto, block) for block in self._blocks(jobs)]
        edges = np.cumsum([len(rows) for _, rows in jobs])[:-1]
        return np.split(np.concatenate(parts), edges)

    def projected(self, jobs: Iterable[Job]) -> list[Float[np.ndarray, "cells dims"]]:
        """The moved cells of each job in the evaluation space."""
        return [np.asarray(self._project(self.cells(*job)), np.float32) for job in jobs]

    def _blocks(self, jobs):
        """Moved cells of job after job, so many at once that no batch of the encoder is mostly filling."""
        waiting, n = [], 0
        for job in jobs:
            waiting.append(self.cells(*job))
            n += len(waiting[-1])
            if n >= _AT_ONCE:
                yield np.concatenate(waiting)
                waiting, n = [], 0
        if waiting:
            yield np.concatenate(waiting)
