"""Stage 2's data on the device: latents sorted by group, with offsets, so that a step draws its batch by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from scbig import flow
from scbig.data.conditions import CONTROL
from scbig.errors import InputError, some
from scbig.nn.condition import Conditions
from scbig.rng import generator
from scbig.training.starts import Starts
from scbig.training.vocabulary import Group

__all__ = ["Populations", "Watched", "build", "displacements", "draw", "watch"]


class Populations(NamedTuple):
    """Training cells of every group (a condition in a context); a pytree of arrays.

    Attributes:
        z: latents of all cells given, and after them of the controls that an anchor moved, ``[cells, latent]``.
        targets: places in ``z`` of the training cells, group after group, ``[targets]``.
        start: where each group begins in ``targets``, ``[groups]``.
        count: how many cells it has, ``[groups]``.
        controls: places in ``z`` of what the flow starts from, pool after pool: training controls, or controls moved by
            the anchor, ``[controls]``.
        pool_start: where the pool of each target's context (and batch, and with an anchor group) begins in
            ``controls``, ``[targets]``.
        pool_count: how many controls that pool has, ``[targets]``.
        pairs: precomputed partners among ``z`` of each target, ``[targets, draws]``; one column of zeros where the
            coupling is not precomputed.
        conditions: what the encoder is told about each group.
    """

    z: Float[Array, "cells latent"]
    targets: Int[Array, " targets"]
    start: Int[Array, " groups"]
    count: Int[Array, " groups"]
    controls: Int[Array, " controls"]
    pool_start: Int[Array, " targets"]
    pool_count: Int[Array, " targets"]
    pairs: Int[Array, "targets draws"]
    conditions: Conditions


class Watched(NamedTuple):
    """Held-out cells of trained and of validation groups, to stop on their distribution; padded to one size.

    Attributes:
        z0: latents that the flow starts from: of held-out controls, moved where there is an anchor,
            ``[groups, cells, latent]``.
        start: these cells in the evaluation space, ``[groups, cells, dims]``.
        real: held-out perturbed cells in the evaluation space, ``[groups, cells, dims]``.
        real_weight: 1 for a cell, 0 for padding, ``[groups, cells]``.
        control: held-out controls in the evaluation space, ``[groups, cells, dims]``.
        conditions: what the encoder is told about each group.
        share: weight of each group in the score, ``[groups]``; adds up to one.
        trained: whether other cells of the group are trained on, ``[groups]``.
        place: number of the group among those given to :func:`watch`, ``[groups]``.
    """

    z0: Float[Array, "groups cells latent"]
    start: Float[Array, "groups cells dims"]
    real: Float[Array, "groups cells dims"]
    real_weight: Float[Array, "groups cells"]
    control: Float[Array, "groups cells dims"]
    conditions: Conditions
    share: Float[Array, " groups"]
    trained: Bool[Array, " groups"]
    place: Int[Array, " groups"]


def _pools(obs: pd.DataFrame, by_batch: bool) -> tuple[Int[np.ndarray, " cells"], Callable[[int], str]]:
    """The number of the control pool that each cell draws from, and the name of a pool."""
    context, contexts = pd.factorize(obs["context"].astype(str))
    if not by_batch:
        return context, lambda pool: contexts[pool]
    batch, batches = pd.factorize(obs["batch"].astype(str))
    return context * len(batches) + batch, lambda pool: " / ".join(
        (contexts[pool // len(batches)], batches[pool % len(batches)])
    )


def _by_number(
    members: Int[np.ndarray, " members"], number: Int[np.ndarray, " cells"]
) -> dict[int, Int[np.ndarray, " some"]]:
    """The members of every number, each in their order."""
    order = members[np.argsort(number[members], kind="stable")]
    ends = np.flatnonzero(np.diff(number[order])) + 1
    return {int(number[part[0]]): part for part in np.split(order, ends) if len(part)}


def build(
    z: Float[np.ndarray, "cells latent"],
    obs: pd.DataFrame,
    train: Bool[np.ndarray, " cells"],
    number: Int[np.ndarray, " cells"],
    groups: list[Group],
    conditions: Conditions,
    *,
    by_batch: bool,
    coupling: str,
    epsilon: float,
    seed: int,
    starts: Starts | None = None,
    most: int = 256,
) -> tuple[Populations, dict[str, float]]:
    """Sorts the training cells into groups and finds the control pool of each.

    Args:
        z: latents of all cells; not to be changed afterwards, since a CPU goes on using the same memory.
        obs: their ``condition``, ``context`` and ``batch``.
        train: cells that may be learned from.
        number: the group of every cell, −1 for controls and what is not to be learned.
        groups: the groups, in the order of ``conditions``.
        conditions: what the encoder is told about each group.
        by_batch: match controls on the batch as well as on the context.
        coupling: ``precomputed`` pairs all cells of each group here, once.
        epsilon: its regularisation, as a share of the mean cost.
        seed: the run's seed.
        starts: moves controls for each group; None starts from the controls as they are.
        most: controls moved for each group.

    Returns:
        The populations, and the mean perplexity of the precomputed plans (empty otherwise).

    Raises:
        InputError: where a group has no training cells or no controls.
    """
    pool, name = _pools(obs, by_batch)
    controls = np.flatnonzero(train & (obs["condition"] == CONTROL).to_numpy())
    chosen = np.flatnonzero(train & (number >= 0))
    order = chosen[np.argsort(number[chosen], kind="stable")]
    count = np.bincount(number[order], minlength=len(groups))
    if (count == 0).any():
        raise InputError(f"no training cells for {some(groups[i][0] for i in np.flatnonzero(count == 0))}")
    found = _by_number(controls, pool)
    orphans = sorted({name(each) for each in np.unique(pool[order]) if each not in found})
    if orphans:
        raise InputError(
            f"no training controls in {some(orphans)}; match on the context alone with --config.flow.match_batch=False"
        )
    start = np.cumsum(count) - count
    where = pool[order]
    if starts is not None:
        z, where, found = _moved(z, where, found, start, count, starts, most, seed)
    size = np.zeros(max(found) + 1, np.int64)
    for each, members in found.items():
        size[each] = len(members)
    begin = np.cumsum(size) - size
    controls = np.concatenate([found[each] for each in sorted(found)])
    pairs, report = np.zeros((len(order), 1), np.int32), {}
    if coupling == "precomputed":
        pairs, report = _pair(z, order, where, found, start, count, seed, epsilon)
    return Populations(
        z=jax.device_put(z),
        targets=jnp.asarray(order, jnp.int32),
        start=jnp.asarray(start, jnp.int32),
        count=jnp.asarray(count, jnp.int32),
        controls=jnp.asarray(controls, jnp.int32),
        pool_start=jnp.asarray(begin[where], jnp.int32),
        pool_count=jnp.asarray(size[where], jnp.int32),
        pairs=jnp.asarray(pairs),
        conditions=conditions,
    ), report


def _moved(z, where, found, start, count, starts, most, seed):
    """Latents with those of moved controls after them, and a pool of these for every group and pool of its targets."""
    rng = generator(seed, "moved controls")
    jobs, pools, numbers = [], {}, np.empty_like(where)
    place = len(z)
    for group, (first, length) in enumerate(zip(start, count, strict=True)):
        mine = where[first : first + length]
        for each, times in zip(*np.unique(mine, return_counts=True), strict=True):
            own = found[int(each)]
            n = int(np.clip(round(most * times / length), 1, len(own)))
            jobs.append((group, np.sort(rng.choice(own, n, replace=False))))
            number = len(pools)
            pools[number] = np.arange(place, place + n)
            numbers[first : first + length][mine == each] = number
            place += n
    return np.concatenate([z, *starts.latents(jobs)]), numbers, pools


def _pair(z, order, where, controls, start, count, seed, epsilon, draws=16):
    """Partners of every target: one entropic plan per group and pool, several at once."""
    partners = np.empty((len(order), draws), np.int32)

    def pair(job):
        group, members, own = job
        found, perplexity = flow.precompute(z[own], z[order[members]], seed + group, epsilon, draws)
        partners[members] = own[found]
        return perplexity

    jobs = []
    for group, (first, length) in enumerate(zip(start, count, strict=True)):
        members = np.arange(first, first + length)
        mine = where[members]
        jobs += [(group, members[mine == each], controls[each]) for each in pd.unique(mine)]
    # Every plan has draws of its own, so the order in which they are done does not matter.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        perplexities = list(threads.map(pair, jobs))
    return partners, {"coupling_perplexity": float(np.mean(perplexities))}


def draw(
    key: jax.Array, populations: Populations, n_conditions: int, n_cells: int, coupling: str
) -> tuple[Int[Array, " conditions"], Int[Array, "conditions cells"], Int[Array, "conditions cells"]]:
    """A batch: groups uniformly (not by cell count) and without repetition where there are enough, cells with.

    Returns:
        The groups, and the places in ``z`` of their controls and of their perturbed cells.
    """
    group_key, cell_key, control_key = jax.random.split(key, 3)
    n_groups = populations.start.shape[0]
    if n_conditions <= n_groups:
        groups = jax.random.permutation(group_key, n_groups)[:n_conditions]
    else:
        groups = jax.random.randint(group_key, (n_conditions,), 0, n_groups)
    count = populations.count[groups][:, None]
    share = jax.random.uniform(cell_key, (n_conditions, n_cells))
    place = populations.start[groups][:, None] + jnp.minimum((share * count).astype(jnp.int32), count - 1)
    if coupling == "precomputed":
        column = jax.random.randint(control_key, place.shape, 0, populations.pairs.shape[1])
        source = populations.pairs[place, column]
    else:
        size = populations.pool_count[place]
        offset = (jax.random.uniform(control_key, place.shape) * size).astype(jnp.int32)
        source = populations.controls[populations.pool_start[place] + jnp.minimum(offset, size - 1)]
    return groups, source, populations.targets[place]


def watch(
    z: Float[np.ndarray, "cells latent"],
    space: Float[np.ndarray, "cells dims"] | Callable[[Int[np.ndarray, " chosen"]], Float[np.ndarray, "chosen dims"]],
    obs: pd.DataFrame,
    held_out: Bool[np.ndarray, " cells"],
    number: Int[np.ndarray, " cells"],
    groups: list[Group],
    conditions: Conditions,
    n_trained: int,
    n_cells: int,
    n_groups: int,
    seed: int,
    starts: Starts | None = None,
) -> Watched:
    """Draws held-out cells of up to ``n_groups`` trained groups and as many validation groups, with controls.

    Args:
        z: latents of all cells.
        space: all cells in the evaluation space, or what gives the cells at some places in it.
        obs: their ``condition`` and ``context``.
        held_out: cells that nothing was learned from: those kept back, and those of the validation part.
        number: the group of every cell, −1 for none.
        groups: the trained groups, then those of validation conditions.
        conditions: what the encoder is told about each.
        n_trained: how many of the groups are trained; trained and validation groups weigh the same as a whole.
        n_cells: held-out cells of each group.
        n_groups: groups of either kind at the most.
        seed: the run's seed.
        starts: moves controls for each group; None starts from the controls as they are.

    Raises:
        InputError: where no trained group has held-out cells.
    """
    rng = generator(seed, "watched")
    pool, name = _pools(obs, by_batch=False)
    cells = _by_number(np.flatnonzero(held_out & (number >= 0)), number)
    controls = _by_number(np.flatnonzero(held_out & (obs["condition"] == CONTROL).to_numpy()), pool)
    controls = {name(each): members for each, members in controls.items()}
    none = np.empty(0, np.int64)
    chosen: tuple[list[int], list[int]] = ([], [])
    rows, weights, sources = {}, {}, {}
    for place in rng.permutation(len(groups)).tolist():
        kind = chosen[int(place >= n_trained)]
        mine, own = cells.get(place, none), controls.get(groups[place].context, none)
        # Two cells are the least that an unbiased distance can be computed from.
        if len(mine) < 2 or len(own) < 2 or len(kind) == n_groups:
            continue
        mine = rng.permutation(mine)[:n_cells]
        kind.append(place)
        rows[place], weights[place] = np.resize(mine, n_cells), np.arange(n_cells) < len(mine)
        sources[place] = rng.choice(own, n_cells, replace=len(own) < n_cells)
    if not chosen[0]:
        raise InputError("no training condition has two held-out cells to stop on; raise --config.holdout_fraction")
    order = [*chosen[0], *chosen[1]]
    kinds = [kind for kind in chosen if kind]
    share = np.concatenate([np.full(len(kind), 1.0 / (len(kind) * len(kinds))) for kind in kinds])
    source, row = np.stack([sources[place] for place in order]), np.stack([rows[place] for place in order])

    def at(places):
        found = space(places.ravel()) if callable(space) else space[places.ravel()]
        return jnp.asarray(found.reshape(*places.shape, -1))

    control = at(source)
    z0, begin = z[source], control
    if starts is not None:
        jobs = list(zip(order, source, strict=True))
        z0, begin = np.stack(starts.latents(jobs)), np.stack(starts.projected(jobs))
    return Watched(
        z0=jnp.asarray(z0),
        start=jnp.asarray(begin, jnp.float32),
        real=at(row),
        real_weight=jnp.asarray(np.stack([weights[place] for place in order]), jnp.float32),
        control=control,
        conditions=conditions.take(jnp.asarray(np.array(order))),
        share=jnp.asarray(share, jnp.float32),
        trained=jnp.asarray(np.array(order) < n_trained),
        place=jnp.asarray(np.array(order), jnp.int32),
    )


def displacements(populations: Populations) -> Float[np.ndarray, "groups latent"]:
    """Mean latent of every group less that of its controls, each target's own pool weighing by the target."""
    z = np.asarray(populations.z)
    targets, controls = np.asarray(populations.targets), np.asarray(populations.controls)
    start, count = np.asarray(populations.start), np.asarray(populations.count)
    # A pool has at least one control, so no two of them begin at the same place.
    _, first, pool = np.unique(np.asarray(populations.pool_start), return_index=True, return_inverse=True)
    ends = zip(np.asarray(populations.pool_start)[first], np.asarray(populations.pool_count)[first], strict=True)
    means = np.stack([z[controls[a : a + n]].mean(axis=0, dtype=np.float64) for a, n in ends])
    out = np.zeros((len(start), z.shape[1]), np.float32)
    for g, (a, n) in enumerate(zip(start, count, strict=True)):
        share = np.bincount(pool[a : a + n], minlength=len(means)) / n
        out[g] = z[targets[a : a + n]].mean(axis=0, dtype=np.float64) - share @ means
    return out
