"""Perturbed genes add up in a learned latent, and a network reads the effect from the sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.baselines.smoother import FEWEST
from scbig.baselines.sources import chosen_sources, side_by_side
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import some

__all__ = ["fit"]


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    *,
    width: int = 128,
    latent: int = 64,
    dropout: float | int = 0.1,
    learning_rate: float | int = 3e-3,
    weight_decay: float | int = 0.05,
    epochs: int = 60,
    n_components: int = 100,
    folds: int = 4,
    seeds: int = 3,
    seed: int = 0,
) -> Model:
    """Predicts ``D(Σ P(gene) + context)``, P and D small networks (the latent-additive model of PerturBench, 2024).

    D gives the leading components of the training effects, as a deviation from the mean effect of the context. How
    long to train, and by how much to shrink the deviation, is chosen by cross-validation over training conditions;
    where the network does no good there, the mean is predicted. Several seeds are averaged.

    Args:
        data: training effects; singles and combinations are learned from.
        embedding: sources in ``data.embeddings`` that P reads, side by side, each with a sign of whether it knows the
            gene. None: all there are, and without any the gene's identity, which says nothing of genes that no
            training condition has. An empty list asks for identities.
        width: of the hidden layers.
        latent: dimensions in which genes add up.
        dropout: on hidden layers.
        learning_rate: of Adam, at the top of its warm-up and cosine schedule.
        weight_decay: decoupled.
        epochs: of the schedule, and the most that are trained.
        n_components: of the training effects that are predicted.
        folds: of the cross-validation. With identities only combinations are left out whose singles are in training;
            where there are fewer than five of them, the whole schedule is trained and nothing shrunk.
        seeds: networks averaged.
        seed: of all draws.

    Raises:
        InputError: a source that is not there.
    """
    trained = sorted({g for c in data.conditions for g in genes_of(c)})
    by_identity = not data.embeddings if embedding is None else not isinstance(embedding, str) and not len(embedding)
    if by_identity:
        features = dict(zip(trained, np.eye(len(trained)), strict=True))
        lacking = "in no training condition"
    else:
        sources = chosen_sources(data, embedding, "latent_additive")
        features, lacking = _features(dict(sorted(sources.items()))), f"no vector in {' or '.join(sources)}"
    keys = zip(data.conditions, data.contexts, strict=True)
    rows = sorted((key, i) for i, key in enumerate(keys) if all(g in features for g in genes_of(key[0])))
    zero, predict, notes = np.zeros(len(data.genes)), None, ()
    if len({c for (c, _), _ in rows}) >= FEWEST:
        training = {"learning_rate": learning_rate, "weight_decay": weight_decay, "epochs": epochs}
        training |= {"n_components": n_components}
        shape = {"width": width, "latent": latent, "dropout": dropout}
        predict, notes = _networks(data, rows, features, by_identity, shape, training, (folds, seeds, seed))

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        absent = [g for g in genes_of(condition) if g not in features]
        if absent:
            return f"{lacking}: {some(absent)}"
        if predict is None:
            return f"{len(rows)} training conditions can be used and at least {FEWEST} are needed"
        return predict(condition, context)

    return Model("latent_additive", data.genes, one_context(data), rule, notes)


def _features(sources: dict) -> dict[str, np.ndarray]:
    """Vectors side by side at unit mean square, and which sources know the gene."""
    vectors = side_by_side(sources)
    size = np.sqrt(np.mean([np.mean(np.square(v)) for v in vectors.values()])) if vectors else 1.0
    return {g: np.concatenate([v / size, [float(g in s) for s in sources.values()]]) for g, v in vectors.items()}


def _networks(data, rows, features, by_identity, shape, training, draws):
    """The predictor of conditions, and notes."""
    # Networks take a second to import: only where one is fitted.
    from scbig.baselines import ensemble
    from scbig.baselines.latent_additive_network import AdditiveNet, GeneSets

    n_folds, seeds, seed = draws
    names, where = zip(*(key for key, _ in rows), strict=True)
    number = {k: i for i, k in enumerate(sorted(set(where)))}
    dims = len(next(iter(features.values())))

    def sets(conditions: Sequence[str], contexts: Sequence[str]) -> GeneSets:
        genes = [genes_of(c) for c in conditions]
        slots = max(map(len, genes))
        x = np.zeros((len(genes), slots, dims), np.float32)
        for i, each in enumerate(genes):
            for j, gene in enumerate(each):
                x[i, j] = features[gene]
        present = np.array([[j < len(each) for j in range(slots)] for each in genes])
        return GeneSets(x, present, np.array([number.get(k, len(number)) for k in contexts], np.int32))

    given = sets(names, where)
    effects = ensemble.without_own(data.effects[[i for _, i in rows]], names, data.genes, given.context)
    task = ensemble.Task(names, given.context, given, effects)
    recipe = ensemble.Recipe(**training)
    n_out = min(recipe.n_components, len(names))

    def make(rngs):
        return AdditiveNet(dims, len(number), n_out, **shape, rngs=rngs)

    candidates = sorted(set(names))
    if by_identity:
        candidates = [c for c in candidates if len(genes_of(c)) > 1 and set(genes_of(c)) <= set(names)]
    if len(candidates) >= FEWEST:
        choice = ensemble.choose(make, task, recipe, n_folds, seed, candidates)
        chosen = f"gain {choice.value:.3f} ± {choice.error:.3f} over the mean in cross-validation"
    else:
        choice = ensemble.Choice(recipe.epochs, 1.0, float("nan"), float("nan"))
        chosen = "no training combinations to choose them on"
    means, deviations = ensemble.fit_ensemble(make, task, recipe, choice, seeds, seed)

    @cache
    def predict(condition: str, context: str) -> np.ndarray:
        return means[number.get(context, len(number))] + deviations(sets([condition], [context]))[0]

    told = f"{choice.epochs} epochs, amplitude {choice.amplitude:g}, {chosen}, {len(set(names))} training conditions"
    return predict, (told, "identities of genes" if by_identity else f"features: {dims}")
