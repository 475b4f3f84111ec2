"""Populations of any size through one program of fixed shape: rows of cells, of any conditions, packed into tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.nn.condition import Conditions, Encoded
from scbig.predict.counts import Counting
from scbig.training import sample_latents
from scbig.training.autoencoder import Autoencoder

__all__ = ["Chunk", "Solver", "by_parts", "encode", "packed", "stream"]

_CELLS = 32  # in a row of a tile; the cells of a condition are cut into rows of so many
_ENCODED = 64  # conditions in one call of the encoder


class Chunk(NamedTuple):
    """Consecutive cells of a population.

    Attributes:
        latent: their latents, ``[cells, latent]``.
        x: their log-expression, ``[cells, genes]``.
    """

    latent: Float[np.ndarray, "cells latent"]
    x: Float[np.ndarray, "cells genes"]


class Solver(NamedTuple):
    """How latents are carried, and whether negative expression becomes zero; fixed in the compiled program."""

    steps: int
    solver: str
    guidance: float
    clip: bool


def _shape() -> tuple[int, int]:
    """Rows of a tile, and rows decoded at once: what keeps the device busy without outgrowing the caches of a CPU."""
    return (16, 1) if jax.default_backend() == "cpu" else (256, 64)


@partial(jax.jit, static_argnames="graph")
def _encode(params, conditions, *, graph):
    return nnx.merge(graph, params).encode(conditions)


def encode(graph: Any, params: Any, conditions: Conditions) -> Encoded:
    """Encodes any number of conditions, each once; arrays in host memory.

    Args:
        graph: structure of the flow network.
        params: its parameters.
        conditions: what is known of each. Singles are padded to the size of pairs, so that both take one program.
    """
    n, tokens = conditions.present.shape
    width = max(2, 1 << (tokens - 1).bit_length())

    def widen(leaf):
        leaf = np.asarray(leaf)
        return np.pad(leaf, [(0, 0), (0, width - tokens)] + [(0, 0)] * (leaf.ndim - 2)) if leaf.ndim > 1 else leaf

    given = jax.tree.map(widen, conditions)
    parts = []
    for start in range(0, n, _ENCODED):
        # The last block is filled up, so that one program serves any number of conditions.
        places = np.minimum(np.arange(start, start + _ENCODED), n - 1)
        block = jax.tree.map(lambda leaf, places=places: jnp.asarray(leaf[places]), given)
        encoded = _encode(params, block, graph=graph)
        parts.append(jax.tree.map(lambda leaf, kept=n - start: np.asarray(leaf)[:kept], encoded))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@partial(jax.jit, static_argnames=("graph", "options"))
def _tile(params, auto, encoded, z0, left, offset, *, graph, options):
    """Latents and expression of the cells of one tile: solver and decoder in one program."""
    network = nnx.merge(graph, params)
    z1 = sample_latents(network, encoded, z0, options.steps, options.solver, options.guidance)
    # Of counts their rates: they are drawn on the host.
    decode = auto.decode if auto.counts is None else lambda z: jnp.exp(auto.log_rates(z))
    x = by_parts(decode, z1)
    if left is not None:
        x = x + left + offset[:, None]
    return z1, jnp.maximum(x, 0.0) if options.clip else x


def packed(
    n_conditions: int, n_cells: int
) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rows cells"], Bool[np.ndarray, " all"]]]:
    """The cells of all conditions, dealt to tiles of one shape.

    Yields:
        For each tile the condition of each row; the number within the condition of each cell; and which cells, row
        after row, are to be kept: the others fill the tile.
    """
    n_rows = _shape()[0]
    per_condition = -(-n_cells // _CELLS)
    total = n_conditions * per_condition
    for first in range(0, total, n_rows):
        row = np.arange(first, first + n_rows)
        # The last tile is filled up with copies, which are dropped, so that its shape is that of all others.
        condition, part = np.divmod(np.minimum(row, total - 1), per_condition)
        cell = part[:, None] * _CELLS + np.arange(_CELLS)
        kept = ((row < total)[:, None] & (cell < n_cells)).ravel()
        yield condition, np.minimum(cell, n_cells - 1), kept


def by_parts(
    function: Callable[[Array], Array], rows: Float[Array, "rows cells dims"]
) -> Float[Array, "rows cells out"]:
    """Applies a function of cells to a tile, so many at once as suit the device's caches."""
    out = jax.lax.map(function, rows.reshape(-1, _shape()[1] * rows.shape[1], rows.shape[2]))
    return out.reshape(*rows.shape[:2], -1)


def stream(
    graph: Any,
    params: Any,
    auto: Autoencoder,
    encoded: Encoded,
    drawn: Int[np.ndarray, "conditions cells"],
    z0: Float[np.ndarray, "controls latent"],
    left: Float[np.ndarray, "controls genes"] | None,
    offset: Float[np.ndarray, "conditions genes"] | None,
    options: Solver,
    counting: Counting | None = None,
) -> Iterator[Chunk]:
    """All cells of all conditions, condition after condition, in chunks of at most one tile.

    Args:
        graph: structure of the flow network.
        params: its parameters.
        auto: the autoencoder.
        encoded: the conditions.
        drawn: places of the control cells that each condition's cells start from.
        z0: latents of the controls.
        left: what the decoder cannot tell of each control, added to the cells that start from it; or None.
        offset: added to all cells of a condition, beside ``left``; or None.
        options: the solver.
        counting: draws the cells, where the autoencoder models counts; ``left`` and ``offset`` are None then.
    """
    waiting = None
    for condition, cell, kept in packed(*drawn.shape):
        source = drawn[condition[:, None], cell]
        told = jax.tree.map(lambda leaf, chosen=condition: jnp.asarray(leaf[chosen]), encoded)
        rest = (None, None) if left is None else (left[source], offset[condition])
        found = _tile(params, auto, told, jnp.asarray(z0[source]), *rest, graph=graph, options=options)
        # The device works on this tile while the one before is fetched and written.
        if waiting is not None:
            yield _fetch(*waiting)
        draw = None
        if counting is not None:
            which = source.ravel()[kept], condition.repeat(_CELLS)[kept], cell.ravel()[kept]
            draw = partial(_drawn, counting, which)
        waiting = found, kept, draw
    yield _fetch(*waiting)


def _drawn(counting, which, rates):
    return counting.draw(rates, *which)


def _fetch(found, kept, draw=None) -> Chunk:
    z1, x = (np.asarray(each).reshape(-1, each.shape[-1]) for each in found)
    z1, x = (z1, x) if kept.all() else (z1[kept], x[kept])
    return Chunk(z1, x if draw is None else draw(x))
