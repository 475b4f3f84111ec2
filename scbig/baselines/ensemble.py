"""Networks from what is known of a perturbation to its effect: how they are trained, stopped, shrunk and averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from scbig.baselines.validation import folds
from scbig.data.conditions import genes_of
from scbig.rng import generator, key

__all__ = ["AMPLITUDES", "Choice", "Recipe", "Task", "choose", "context_means", "fit_ensemble", "without_own"]

AMPLITUDES = (0.25, 0.5, 0.75, 1.0)
"""Factors tried on the predicted deviation from the mean training effect; 0 is kept where none does good."""

_LAG = 10  # epochs over which weights are averaged
_EVENNESS = 0.1  # 0: a condition weighs as its squared effect does; 1: all conditions weigh the same

Make = Callable[[nnx.Rngs], nnx.Module]
"""Builds an untrained network: ``network(inputs, key) -> [rows, components]``, dropout on where a key is given."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam with decoupled weight decay, a tenth of warm-up, then a cosine to zero.

    Attributes:
        learning_rate: at its highest.
        weight_decay: per step, times the learning rate.
        epochs: of the schedule; training may stop before.
        batch: conditions per step; an eighth of them where that is less, and 16 at least.
        n_components: leading components of the training effects that are predicted.
    """

    learning_rate: float | int = 4e-3
    weight_decay: float | int = 0.05
    epochs: int = 40
    batch: int = 128
    n_components: int = 150


@dataclass(frozen=True)
class Task:
    """Training conditions, one row per condition and context.

    Attributes:
        names: conditions; those of the same name are left out together.
        context: number of each row's context.
        inputs: what the network is given, arrays with a row per condition.
        effects: training effects; a condition's own genes moved to the mean, as they say nothing of other genes.
    """

    names: tuple[str, ...]
    context: Int[np.ndarray, " rows"]
    inputs: Any
    effects: Float[np.ndarray, "rows genes"]


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose.

    Attributes:
        epochs: after which to stop.
        amplitude: factor on the predicted deviation; 0 where the network does no better than the mean.
        value: gain over the mean on left-out conditions, of Pearson correlation plus discrimination (PDS).
        error: its standard error.
    """

    epochs: int
    amplitude: float
    value: float
    error: float


def context_means(
    effects: Float[np.ndarray, "rows genes"], context: Int[np.ndarray, " rows"], n_contexts: int
) -> Float[np.ndarray, "contexts genes"]:
    """Mean effect of each context, and last that of all rows, which also stands in for a context without any."""
    overall = effects.mean(axis=0)
    means = [effects[context == k].mean(axis=0) if (context == k).any() else overall for k in range(n_contexts)]
    return np.stack([*means, overall])


@partial(jax.jit, static_argnames="graph")
def _forward(graph, params, inputs, rows):
    return nnx.merge(graph, params)(jax.tree.map(lambda a: a[rows], inputs), None)


@partial(jax.jit, static_argnames="graph")
def _epoch(graph, epochs, rate, decay, carry, inputs, targets, weights, batches, seed_key):
    """One pass over ``batches``, ``[steps, size]``; the carry is weights, moments, averaged weights and step."""
    adam, steps = optax.scale_by_adam(), batches.shape[0]
    total = epochs * steps

    def loss(params, rows, step_key):
        found = nnx.merge(graph, params)(jax.tree.map(lambda a: a[rows], inputs), step_key)
        return jnp.sum(weights[rows] * jnp.sum(jnp.square(found - targets[rows]), axis=1)) / jnp.sum(weights[rows])

    def step(carry, rows):
        params, moments, average, count = carry
        grad = jax.grad(loss)(params, rows, jax.random.fold_in(seed_key, count))
        update, moments = adam.update(grad, moments)
        now = rate * jnp.minimum(10 * (count + 1) / total, 0.5 * (1 + jnp.cos(jnp.pi * count / total)))
        params = jax.tree.map(lambda p, u: p - now * (u + decay * p), params, update)
        average = jax.tree.map(lambda a, p: a + (p - a) / (_LAG * steps), average, params)
        return (params, moments, average, count + 1), None

    return jax.lax.scan(step, carry, batches)[0]


@dataclass(frozen=True)
class _Target:
    """Deviations from the context's mean in leading components, scaled to unit size."""

    means: np.ndarray
    basis: np.ndarray
    scale: float
    values: np.ndarray
    weights: np.ndarray


def _target(task: Task, rows: np.ndarray, recipe: Recipe) -> _Target:
    """Means and components of some rows only; the other rows get values of zero and are never trained on."""
    n_contexts = int(task.context.max()) + 1
    means = context_means(task.effects[rows], task.context[rows], n_contexts)
    y = (task.effects[rows] - means[task.context[rows]]).astype(np.float64)
    # Fewer conditions than genes: the components come from the small matrix of inner products.
    size, vectors = np.linalg.eigh(y @ y.T)
    kept = np.flatnonzero(size > 1e-9 * max(size[-1], 1e-30))[::-1][: recipe.n_components]
    basis = (vectors[:, kept] / np.sqrt(size[kept])).T @ y
    loading = y @ basis.T
    # As many components in every fold, so that one compiled program serves all.
    width = min(recipe.n_components, len(task.names))
    basis = np.concatenate([basis, np.zeros((width - len(basis), basis.shape[1]))])
    values = np.zeros((len(task.names), width), np.float32)
    power = np.square(loading).sum(axis=1)
    scale = float(np.sqrt(power.mean() / width)) or 1.0
    values[rows, : loading.shape[1]] = loading / scale
    weights = np.zeros(len(task.names), np.float32)
    weights[rows] = (power / (power.mean() or 1.0) + 1e-3) ** -_EVENNESS
    return _Target(means, basis, scale, values, weights)


def _train(
    make: Make, task: Task, target: _Target, rows: np.ndarray, recipe: Recipe, seed: int, epochs: int, watch=None
):
    """Weights after some epochs, averaged over the last; ``watch(graph, params)`` is called after each."""
    graph, params = nnx.split(make(nnx.Rngs(params=key(seed, "baseline init"))))
    draw = generator(seed, "baseline batches")
    size = min(recipe.batch, max(16, len(task.names) // 8), len(task.names))
    steps = -(-len(task.names) // size)
    carry = (params, optax.scale_by_adam().init(params), params, jnp.zeros((), jnp.int32))
    rounds = -(-steps * size // len(rows))
    for _ in range(epochs):
        order = np.concatenate([draw.permutation(rows) for _ in range(rounds)])[: steps * size].reshape(steps, size)
        carry = _epoch(
            graph, recipe.epochs, recipe.learning_rate, recipe.weight_decay, carry, task.inputs, target.values,
            target.weights, order, key(seed, "baseline dropout"),
        )  # fmt: skip
        if watch is not None:
            watch(graph, carry[2])
    return graph, carry[2]


def choose(
    make: Make,
    task: Task,
    recipe: Recipe,
    n_folds: int = 4,
    seed: int = 0,
    candidates: Sequence[str] | None = None,
) -> Choice:
    """Epochs and amplitude by cross-validation over training conditions.

    They maximise, on conditions left out, the mean of the Pearson correlation with the effect plus the share of other
    left-out effects of the context that lie farther off (PDS, Euclidean). The network is dropped where its gain over
    the mean is below twice its standard error.

    Args:
        make: builds the network.
        task: training conditions.
        recipe: how to train.
        n_folds: folds.
        seed: of folds and networks.
        candidates: the conditions that are left out in turn; all by default.

    Raises:
        InputError: fewer than two conditions to leave out.
    """
    task = Task(task.names, task.context, jax.tree.map(jnp.asarray, task.inputs), task.effects)
    names = sorted(set(task.names if candidates is None else candidates))
    held = [np.flatnonzero(np.isin(task.names, fold)) for fold in folds(names, n_folds, seed)]
    longest = max(map(len, held))
    gains = np.zeros((len(task.names), recipe.epochs, len(AMPLITUDES)))
    for number, out in enumerate(held):
        rest = np.setdiff1d(np.arange(len(task.names)), out)
        target, told = _target(task, rest, recipe), []
        # Folds of one size share a compiled program.
        padded = np.resize(out, longest)

        def watch(graph: Any, params: Any, told: list = told, padded: np.ndarray = padded) -> None:
            told.append(_forward(graph, params, task.inputs, padded))

        _train(make, task, target, rest, recipe, seed + number, recipe.epochs, watch)
        found = np.stack([np.asarray(f, np.float64)[: len(out)] * target.scale for f in told])
        gains[out] = _gains(found, target, task.effects[out], task.context[out])
    gains = gains[np.concatenate(held)]
    mean = gains.mean(axis=0)
    epoch, amplitude = np.unravel_index(np.argmax(mean), mean.shape)
    value, error = mean[epoch, amplitude], gains[:, epoch, amplitude].std() / np.sqrt(len(gains))
    return Choice(int(epoch) + 1, AMPLITUDES[amplitude] if value > 2 * error else 0.0, float(value), float(error))


def _gains(found: np.ndarray, target: _Target, effects: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Gain over the mean by row, epoch and amplitude, for ``found``, ``[epochs, rows, components]``.

    All from inner products in the components: no prediction over genes is formed.
    """
    basis, mean = target.basis, target.means[context]
    truth = effects - mean
    centre = lambda a: a - a.mean(axis=-1, keepdims=True)  # noqa: E731
    y, m, v = centre(effects.astype(np.float64)), centre(mean.astype(np.float64)), centre(basis)
    my, mm, yy = (m * y).sum(axis=1), (m * m).sum(axis=1), (y * y).sum(axis=1)
    fy, fm = np.einsum("erc,rc->er", found, y @ v.T), np.einsum("erc,rc->er", found, m @ v.T)
    ff = np.einsum("erc,erc->er", found @ (v @ v.T), found)
    fits, lengths = truth @ basis.T, np.square(truth).sum(axis=1)
    same = context[:, None] == context[None, :]
    cross = np.einsum("erc,jc->erj", found, fits)
    # A context with one row left out has no other to tell it from.
    others = np.maximum(same.sum(axis=1) - 1, 1)
    out = np.zeros((len(effects), len(found), len(AMPLITUDES)))
    base = _ratio(my, mm * yy)
    for i, a in enumerate(AMPLITUDES):
        r = _ratio(my + a * fy, (mm + 2 * a * fm + a * a * ff) * yy)
        distance = lengths[None, None, :] - 2 * a * cross
        own = np.einsum("err->er", distance)[:, :, None]
        farther = ((distance > own) & same).sum(axis=2) / others
        alone = same.sum(axis=1) == 1
        out[:, :, i] = (r - base + np.where(alone, 0.0, farther - 0.5)).T
    return out


def _ratio(product: np.ndarray, square: np.ndarray) -> np.ndarray:
    square = np.broadcast_to(square, product.shape)
    return np.divide(product, np.sqrt(np.maximum(square, 0)), out=np.zeros(product.shape), where=square > 1e-20)


def fit_ensemble(
    make: Make, task: Task, recipe: Recipe, choice: Choice, seeds: int = 3, seed: int = 0
) -> tuple[np.ndarray, Callable[[Any], np.ndarray]]:
    """Trains on all rows with several seeds.

    Returns:
        Mean effects by context as :func:`context_means` has them, and a function from inputs to predicted deviations
        from them, float64 rows × genes, averaged over the seeds.
    """
    task = Task(task.names, task.context, jax.tree.map(jnp.asarray, task.inputs), task.effects)
    every = np.arange(len(task.names))
    target = _target(task, every, recipe)
    members = []
    if choice.amplitude > 0:
        members = [_train(make, task, target, every, recipe, 1000 + seed + i, choice.epochs) for i in range(seeds)]

    def deviations(inputs: Any) -> np.ndarray:
        n = len(jax.tree.leaves(inputs)[0])
        if not members:
            return np.zeros((n, target.basis.shape[1]))
        found = np.mean([np.asarray(_forward(g, p, inputs, np.arange(n)), np.float64) for g, p in members], axis=0)
        return choice.amplitude * target.scale * found @ target.basis

    return target.means, deviations


def without_own(
    effects: Float[np.ndarray, "rows genes"],
    names: Sequence[str],
    genes: Sequence[str],
    context: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, "rows genes"]:
    """Effects in which the perturbed genes themselves move as they do in the other conditions of the context."""
    place = {g: j for j, g in enumerate(genes)}
    carriers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for gene in genes_of(name):
            if gene in place:
                carriers.setdefault(gene, []).append(i)
    out = effects.copy()
    for gene, rows in carriers.items():
        column = place[gene]
        for k in np.unique(context[rows]):
            rest = context == k
            rest[rows] = False
            at = [i for i in rows if context[i] == k]
            out[at, column] = effects[rest, column].mean() if rest.any() else 0.0
    return out
