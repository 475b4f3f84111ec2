"""What the decoder cannot tell of the control cells that populations start from: counting noise above all."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.training.autoencoder import Autoencoder, decode_all

__all__ = ["Residuals"]

_BLOCK = 2048  # cells decoded, or averaged, at once


class Residuals:
    """Expression of each control less what its latent decodes to; computed once for each cell that is asked for.

    Args:
        auto: the autoencoder.
        z0: latents of the controls, ``[controls, latent]``.
        x0: their log-expression, CSR ``[controls, genes]``.
    """

    def __init__(self, auto: Autoencoder, z0: Float[np.ndarray, "controls latent"], x0: sp.csr_matrix):
        self._auto, self._z0, self._x0 = auto, z0, x0
        # Memory that is never written to is never taken.
        self.table: Float[np.ndarray, "controls genes"] = np.empty(x0.shape, np.float32)
        self._known = np.zeros(x0.shape[0], bool)

    def require(self, rows: Int[np.ndarray, "..."]) -> None:
        """Fills ``table`` at the given places."""
        wanted = np.zeros(len(self._known), bool)
        wanted[rows] = True
        todo = np.flatnonzero(wanted & ~self._known)
        for start in range(0, len(todo), _BLOCK):
            block = todo[start : start + _BLOCK]
            self.table[block] = self._x0[block].toarray() - decode_all(self._auto, self._z0[block])
        self._known[todo] = True

    def mean(self, rows: Int[np.ndarray, " cells"]) -> Float[np.ndarray, " genes"]:
        """Mean over the given cells, each counted as often as it is named."""
        self.require(rows)
        times = np.bincount(rows, minlength=len(self._known))
        total, chosen = np.zeros(self.table.shape[1]), np.flatnonzero(times)
        for start in range(0, len(chosen), _BLOCK):
            block = chosen[start : start + _BLOCK]
            total += times[block].astype(np.float32) @ self.table[block]
        return (total / len(rows)).astype(np.float32)
