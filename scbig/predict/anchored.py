"""Populations that start where the anchor puts the controls, and keep of the flow what its gates let through."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx
from jaxtyping import Float, Int

from scbig import losses
from scbig.anchor import Anchor, plan, thinned
from scbig.nn.condition import Encoded
from scbig.predict import tiles
from scbig.predict.counts import Counting
from scbig.training import sample_latents
from scbig.training.autoencoder import Autoencoder
from scbig.training.vocabulary import Group

__all__ = ["AnchoredCells"]

_PROBED = 256  # cells of a condition that what holds for all of them is found on
_BLOCK = 1024  # cells moved at once
_BLOWN = 3.0  # times as far as planned that a gene is moved to make up for a draw
_CENTRED = 100  # cells from which on the mean of a draw is brought to that of all controls


@partial(jax.jit, static_argnames=("graph", "options", "flows"))
def _tile(params, auto, encoded, x0, factor, added, share, *, graph, options, flows):
    """Latents, moved cells, what the flow adds to each in expression, and, of counts, their rates."""
    xa = x0 * factor[:, None] + added[:, None]
    z, delta = tiles.by_parts(auto.encode, xa), None
    if flows:
        z0, network = z, nnx.merge(graph, params)
        z1 = sample_latents(network, encoded, z0, options.steps, options.solver, options.guidance)
        delta = tiles.by_parts(auto.decode, z1) - tiles.by_parts(auto.decode, z0)
        z = z0 + share[:, None, None] * (z1 - z0)
    rates = None if auto.counts is None else tiles.by_parts(lambda rows: jnp.exp(auto.log_rates(rows)), z)
    return z, xa, delta, rates


class AnchoredCells:
    """Samples cells of some groups.

    A control ``x`` is moved to ``x_a = move(x, effect)``, encoded, carried by the flow, and both ends are decoded:
    ``Δ = D(z₁) − D(z₀)``. The cell is ``x_a + s (Δ − mean Δ) + m mean Δ`` with the gates ``s`` and ``m`` of its
    condition: with both closed it is ``x_a``, whose mean is the anchor's. Where negative values become zero, each gene is
    scaled back to the mean it had before. Where the autoencoder models counts, rates are tilted by gene until their mean
    is the anchor's, and counts are drawn.

    Args:
        anchor: effects and gates.
        auto: the autoencoder.
        graph: structure of the flow network.
        params: its parameters.
        encoded: the conditions, as the network reads them.
        groups: the same by name.
        drawn: places of the controls that each group's cells start from.
        x0: log-expression of the controls, CSR.
        pool_mean: mean log-expression of all controls that the group's are drawn from, ``[groups, genes]``.
        options: the solver.
        seed: of the cells that lose a gene.
        counting: draws counts where the autoencoder models them.
        depth: of each control, where it does.
    """

    def __init__(
        self,
        anchor: Anchor,
        auto: Autoencoder,
        graph: Any,
        params: Any,
        encoded: Encoded,
        groups: Sequence[Group],
        drawn: Int[np.ndarray, "groups cells"],
        x0: sp.csr_matrix,
        pool_mean: Float[np.ndarray, "groups genes"],
        options: tiles.Solver,
        seed: int,
        counting: Counting | None = None,
        depth: Float[np.ndarray, " controls"] | None = None,
    ):
        self._auto, self._graph, self._params, self._encoded = auto, graph, params, encoded
        self._drawn, self._x0, self._options = drawn, x0, options
        self._counting, self._depth = counting, depth
        keys = [(group.condition, group.context) for group in groups]
        self._effect = np.stack([anchor.effect(*key) for key in keys])
        gates = [anchor.gate(*key) for key in keys]
        self._mean_gate = np.array([gate.mean for gate in gates], np.float32)
        self._shape_gate = np.array([gate.shape for gate in gates], np.float32)
        self._flows = bool(self._mean_gate.any() or self._shape_gate.any())
        self._target = np.maximum(pool_mean + self._effect, 0.0 if options.clip else -np.inf)
        self._names = [(seed, zlib.crc32(f"moved {g.condition}@{g.context}".encode())) for g in groups]
        self._shifted = anchor.move == "shift"
        self._factor, self._added, self._kept = plan(pool_mean, self._effect, anchor.move)
        if drawn.shape[1] >= _CENTRED:
            self._centre(pool_mean + self._effect)

    def chunks(self) -> Iterator[tiles.Chunk]:
        """The cells, group after group."""
        offset, restored, tilted = self._probed()
        for group, cell, (z, x, delta, rates) in self._tiles(self._drawn.shape[1]):
            if rates is not None:
                x = rates * np.exp(tilted[group])
                yield tiles.Chunk(z, self._counting.draw(x, self._drawn[group, cell], group, cell))
                continue
            if self._flows:
                x = x + self._shape_gate[group][:, None] * delta + offset[group]
            if self._options.clip:
                x = np.maximum(x, 0.0) * restored[group]
            yield tiles.Chunk(z, x)

    def _centre(self, target: np.ndarray) -> None:
        """Takes the noise out of the means of draws: so many cells can bear to be moved a little more or less."""
        for group, rows in enumerate(self._drawn):
            seen = [self._moved(group, np.arange(i, min(i + _BLOCK, len(rows)))) for i in range(0, len(rows), _BLOCK)]
            mean = sum(each.sum(axis=0, dtype=np.float64) for each in seen) / len(rows)
            if self._shifted:
                self._added[group] = target[group] - mean
                continue
            wanted = np.maximum(target[group] - self._added[group], 0.0)
            exact = np.divide(wanted, mean, out=np.zeros_like(mean), where=mean > 0)
            # A gene that hardly any of these cells has is not blown up in these few.
            self._factor[group] = np.minimum(exact, _BLOWN * self._factor[group])

    def _moved(self, group: int | np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Controls of some cells, less what they lose."""
        group = np.broadcast_to(group, cell.shape)
        x = self._x0[self._drawn[group, cell]].toarray()
        names = [(*self._names[g], c) for g, c in zip(group.tolist(), cell.tolist(), strict=True)]
        return thinned(x, self._kept[group], names)

    def _probed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What holds for all cells of a group, found on some: a summand and a factor by gene, or of counts a tilt."""
        shape = self._effect.shape
        offset, restored, tilted = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.float32)
        # Cells that are only moved become negative by shifting alone.
        clipped = self._options.clip and (self._flows or self._shifted)
        if self._flows or clipped or self._counting is not None:
            for group, cell, (_, x, delta, rates) in self._by_group(min(_PROBED, self._drawn.shape[1])):
                share, mean = self._shape_gate[group], self._mean_gate[group]
                moved = delta.mean(axis=0) if self._flows else np.zeros(shape[1], np.float32)
                if rates is not None:
                    depth = self._depth[self._drawn[group, cell]].astype(np.float32)
                    target = np.maximum(self._target[group] + mean * moved, 0.0).astype(np.float32)
                    # Cells are repeated to one number of them, so that it is compiled once for all groups.
                    full = np.resize(np.arange(len(rates)), _PROBED)
                    tilted[group] = _tilt(rates[full], self._auto.inverse_dispersion(), depth[full], target)
                    continue
                offset[group] = (mean - share) * moved
                if clipped:
                    before = x + share * delta + offset[group] if self._flows else x
                    after = np.maximum(before, 0.0).mean(axis=0)
                    wanted = np.maximum(before.mean(axis=0), 0.0)
                    factor = np.divide(wanted, after, out=np.ones_like(after), where=after > 1e-6)
                    restored[group] = np.minimum(factor, 1.0)
        return offset, restored, tilted

    def _by_group(self, n_cells: int) -> Iterator[tuple[int, np.ndarray, tuple]]:
        """The first cells of each group, group by group."""
        held: list[tuple] = []
        current = 0
        for groups, cells, found in self._tiles(n_cells):
            for group in np.unique(groups):
                if group != current:
                    yield current, *_joined(held)
                    held, current = [], int(group)
                mine = groups == group
                held.append((cells[mine], tuple(None if each is None else each[mine] for each in found)))
        yield current, *_joined(held)

    def _tiles(self, n_cells: int) -> Iterator[tuple[np.ndarray, np.ndarray, tuple]]:
        """The first cells of each group: group and number of those in each tile, and what the program gives for them."""
        for group, cell, kept in tiles.packed(len(self._drawn), n_cells):
            told = jax.tree.map(lambda leaf, chosen=group: jnp.asarray(leaf[chosen]), self._encoded)
            x0 = self._moved(group.repeat(cell.shape[1]), cell.ravel()).reshape(*cell.shape, -1)
            found = _tile(
                self._params, self._auto, told, x0, self._factor[group], self._added[group], self._shape_gate[group],
                graph=self._graph, options=self._options, flows=self._flows,
            )  # fmt: skip
            flat = (None if each is None else np.asarray(each).reshape(-1, each.shape[-1])[kept] for each in found)
            yield group.repeat(cell.shape[1])[kept], cell.ravel()[kept], tuple(flat)


def _joined(held: list[tuple]) -> tuple[np.ndarray, tuple]:
    """Parts of one group below each other."""
    cells, found = zip(*held, strict=True)
    parts = zip(*found, strict=True)
    return np.concatenate(cells), tuple(None if each[0] is None else np.concatenate(each) for each in parts)


_tilt = jax.jit(losses.tilt)
