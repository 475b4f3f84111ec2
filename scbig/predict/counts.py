"""Counting noise of sampled cells, where the autoencoder models counts: drawn anew for each, at its control's depth."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from scbig import losses
from scbig.training.autoencoder import Autoencoder
from scbig.training.vocabulary import Group

__all__ = ["Counting"]


class Counting:
    """Draws the counts of cells from their rates.

    What is drawn depends on the seed, the condition, its context and the number of the cell within it alone: neither on
    what else is sampled, nor on how it is divided.

    Args:
        auto: an autoencoder of counts.
        depth: of the controls that cells start from, and keep; in units of the sum that counts are scaled to.
        groups: the conditions.
        seed: of the draws.
    """

    def __init__(self, auto: Autoencoder, depth: Float[np.ndarray, " controls"], groups: Sequence[Group], seed: int):
        self._inverse_dispersion = np.asarray(auto.inverse_dispersion())
        self._depth, self._seed = depth, seed
        self._tags = [zlib.crc32(f"sample counts {g.condition}@{g.context}".encode()) for g in groups]

    def draw(
        self,
        rates: Float[np.ndarray, "cells genes"],
        source: Int[np.ndarray, " cells"],
        condition: Int[np.ndarray, " cells"],
        number: Int[np.ndarray, " cells"],
    ) -> Float[np.ndarray, "cells genes"]:
        """Log-expression of cells.

        Args:
            rates: counts to be expected per unit of depth.
            source: place of the control that each started from.
            condition: place of its condition.
            number: which of the condition's cells it is.
        """
        each = zip(condition.tolist(), number.tolist(), strict=True)
        generators = [np.random.default_rng([self._seed, self._tags[place], cell]) for place, cell in each]
        return losses.drawn(rates, self._inverse_dispersion, self._depth[source], generators)
