"""The condition encoder's ways of bringing sources together, alone: encoder and a linear head on Replogle's effects.

python -m benchmarks.condition --shared DIR
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx

from benchmarks import crossval
from benchmarks.common import write
from scbig import baselines, evaluation, rng
from scbig.baselines import ensemble
from scbig.nn import ConditionEncoder, ConditionEncoderConfig
from scbig.training.vocabulary import Group, Vocabulary

METRICS = ("pearson_delta", "pearson_delta_recorded", "pearson_delta_ref_perturbed", "pds_l2", "mse")
KINDS = ("network", "text", "annotation")
VARIANTS = {
    "mean": {},
    "attention": {"fusion": "attention"},
    "mean, kernel": {"kernel": True},
    "attention, kernel": {"fusion": "attention", "kernel": True},
}
WIDTH, RATE, DECAY, BATCH, COMPONENTS = 96, 2e-3, 0.05, 128, 100


class Regression(nnx.Module):
    """Encoder and head: components of the effect from a perturbation's token, as the shift of the flow reads it."""

    def __init__(self, config: ConditionEncoderConfig, vocabulary: Vocabulary, n_out: int, *, rngs: nnx.Rngs):
        self.encoder = ConditionEncoder(config, vocabulary.dims, rngs=rngs)
        if config.kernel:
            self.encoder.attach(vocabulary.bank())
        self.head = nnx.Linear(config.width, n_out, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, conditions, key=None):
        """Components of each condition."""
        return jnp.sum(self.head(self.encoder(conditions, key).tokens), axis=1)


@partial(jax.jit, static_argnames=("graph", "total"))
def _epoch(graph, total, carry, buffers, given, targets, batches, seed_key):
    adam, steps = optax.scale_by_adam(), batches.shape[0]

    def loss(params, rows, key):
        found = nnx.merge(graph, params, buffers)(given.take(rows), key)
        return jnp.mean(jnp.square(found - targets[rows]))

    def step(carry, rows):
        params, moments, average, count = carry
        update, moments = adam.update(jax.grad(loss)(params, rows, jax.random.fold_in(seed_key, count)), moments)
        rate = RATE * jnp.minimum(10 * (count + 1) / total, 0.5 * (1 + jnp.cos(jnp.pi * count / total)))
        params = jax.tree.map(lambda p, u: p - rate * (u + DECAY * p), params, update)
        average = jax.tree.map(lambda a, p: a + (p - a) / (5 * steps), average, params)
        return (params, moments, average, count + 1), None

    return jax.lax.scan(step, carry, batches)[0]


@partial(jax.jit, static_argnames="graph")
def _forward(graph, params, buffers, given):
    return nnx.merge(graph, params, buffers)(given)


def trained(changes, sources, names, targets, asked, epochs: int, seed: int) -> np.ndarray:
    """Predicted components of the genes asked for after each epoch, ``[epochs, genes, components]``."""
    embeddings = {k: (np.array(e.genes)[e.mask], e.vectors[e.mask]) for k, e in sources.items()}
    vocabulary = Vocabulary.build(embeddings, names, True, {}, ["all"])
    config = ConditionEncoderConfig(width=WIDTH, source_dropout=0.2, **changes)
    network = Regression(config, vocabulary, targets.shape[1], rngs=nnx.Rngs(params=rng.key(seed, "condition init")))
    graph, params, buffers = nnx.split(network, nnx.Param, ...)
    given, other = (vocabulary.conditions([Group(n, "all") for n in each]) for each in (names, asked))
    draw, size = rng.generator(seed, "condition batches"), min(BATCH, len(names))
    steps, found = len(names) // size, []
    carry = (params, optax.scale_by_adam().init(params), params, jnp.zeros((), jnp.int32))
    for _ in range(epochs):
        batches = draw.permutation(len(names))[: steps * size].reshape(steps, size)
        key = rng.key(seed, "condition dropout")
        carry = _epoch(graph, epochs * steps, carry, buffers, given, jnp.asarray(targets), batches, key)
        found.append(np.asarray(_forward(graph, carry[2], buffers, other)))
    return np.stack(found)


def predicted(changes, data, tested, sources, epochs: int, seeds: int) -> tuple[np.ndarray, int]:
    """Effects of the tested genes; epochs are chosen on a fifth of the training genes, the head's share with them."""
    known = set().union(*({g for g, k in zip(e.genes, e.mask, strict=True) if k} for e in sources.values()))
    rows = [i for i, c in enumerate(data.conditions) if c in known]
    names, context = [data.conditions[i] for i in rows], np.zeros(len(rows), int)
    effects = ensemble.without_own(data.effects[rows], names, data.genes, context)
    order = rng.generator(0, "condition validation").permutation(len(names))
    out, rest = np.sort(order[: len(names) // 5]), np.sort(order[len(names) // 5 :])

    def reduced(some):
        mean = effects[some].mean(axis=0)
        _, size, right = np.linalg.svd(effects[some] - mean, full_matrices=False)
        basis = right[:COMPONENTS]
        scale = size[:COMPONENTS].std() / np.sqrt(len(some))
        return mean, basis, scale, ((effects[some] - mean) @ basis.T / scale).astype(np.float32)

    mean, basis, scale, targets = reduced(rest)
    told = trained(changes, sources, [names[i] for i in rest], targets, [names[i] for i in out], epochs, 100)
    truth = (effects[out] - mean) @ basis.T / scale
    errors = [np.square(each - truth).sum() for each in told]
    best = int(np.argmin(errors))
    mean, basis, scale, targets = reduced(np.arange(len(names)))
    asked = [c for c in tested if c in known]
    each = [trained(changes, sources, names, targets, asked, epochs, seed)[best] for seed in range(seeds)]
    found = dict(zip(asked, scale * np.mean(each, axis=0) @ basis, strict=True))
    return np.stack([mean + found.get(c, 0.0) for c in tested]).astype(np.float32), best + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--folds", type=int, default=1, help="of five")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2, help="networks averaged")
    parser.add_argument("--out", default="benchmarks/results/condition")
    given = parser.parse_args()
    effects = crossval.read(Path(given.shared, "data", "replogle2022_k562_effects.h5ad"), clip=5.0)
    conditions = crossval.singles(effects)
    sources = crossval.embeddings(Path(given.shared, "priors"), conditions, KINDS)
    tables, seconds, chosen = [], dict.fromkeys(VARIANTS, 0.0), {name: [] for name in VARIANTS}
    for split in list(crossval.folds(conditions, 5, 1))[: given.folds]:
        data, tested = baselines.training_data_from_effects(effects, split, sources), split.conditions("test")
        made = {}
        for name, changes in VARIANTS.items():
            start = time.perf_counter()
            values, epochs = predicted(changes, data, tested, sources, given.epochs, given.seeds)
            seconds[name] += time.perf_counter() - start
            chosen[name].append(epochs)
            rule = dict(zip(tested, values, strict=True))
            model = baselines.Model(name, data.genes, "all", lambda c, k, rule=rule: rule[c])
            made[name] = baselines.as_effects(model, tested)[0]
            print(f"{name}: {epochs} epochs, {seconds[name]:.0f} s", flush=True)
        beside = {"mean of training": ("mean", {}), "kernel_ridge": ("kernel_ridge", {"embedding": KINDS})}
        for name, (baseline, options) in beside.items():
            made[name] = baselines.as_effects(baselines.fit(baseline, data, **options), tested)[0]
        tables.append(evaluation.evaluate(made, effects, split, draws=2, references=()).per_condition)
    table = pd.concat(tables)
    rows = [["encoder", *METRICS, "epochs", "s per fold"]]
    for name in (*VARIANTS, *beside):
        more = (
            [", ".join(map(str, chosen[name])), f"{seconds[name] / given.folds:.0f}"] if name in VARIANTS else ["", ""]
        )
        rows.append([name, *(crossval.with_interval(table, name, m) for m in METRICS), *more])
    notes = [
        f"{given.folds} of five folds of {len(conditions)} unseen singles, {given.seeds} networks averaged; sources "
        f"{', '.join(KINDS)} and identity; {COMPONENTS} components of the effects are read by a linear head from the "
        "perturbation's token. Epochs are chosen on a fifth of the training genes, with other networks.",
    ]
    for name in list(VARIANTS)[1:]:
        for metric in ("pearson_delta_ref_perturbed", "pds_l2"):
            text, real = crossval.against(table, name, "mean", metric)
            notes.append(f"{name} against mean in {metric}: {text}; {'a' if real else 'no'} real difference.")
    command = "python -m benchmarks.condition --shared DIR"
    record = {"seconds": seconds, "epochs": chosen}
    write(given.out, "The condition encoder: fusion of sources and kernel", command, rows, notes, record)


if __name__ == "__main__":
    main()
