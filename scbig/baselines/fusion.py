"""Attention over several embeddings of the perturbed gene, some of which may not know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.baselines.smoother import FEWEST
from scbig.baselines.sources import Sources, chosen_sources
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import some

__all__ = ["SPACE", "fit"]

SPACE = {
    "head_width": (4.0, 32.0, "log"),
    "learning_rate": (3e-4, 1e-2, "log"),
    "dropout": (0.0, 0.4, "linear"),
    "weight_decay": (1e-3, 1.0, "log"),
}
"""Settings searched where ``trials`` is above 0; ``head_width``, rounded, is that of one attention head."""


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    *,
    width: int = 96,
    depth: int = 2,
    heads: int = 4,
    dropout: float | int = 0.2,
    source_dropout: float | int = 0.2,
    learning_rate: float | int = 4e-3,
    weight_decay: float | int = 0.05,
    epochs: int = 40,
    n_components: int = 150,
    folds: int = 4,
    seeds: int = 3,
    seed: int = 0,
    trials: int = 0,
) -> Model:
    """Predicts effects of single perturbations by a small transformer over their embeddings (Cole et al. 2026).

    One token per source, projected and normalised, one for the context, and one (CLS) from which the leading
    components of the effect are read, as a deviation from the mean training effect of the context. Trained on the
    singles of all contexts together. How long to train, and by how much to shrink the deviation, is chosen by
    cross-validation over training genes; where the network does no good there, the mean is predicted. Several seeds
    are averaged.

    Args:
        data: training effects; single perturbations are learned from.
        embedding: a source in ``data.embeddings``, several, or None for all.
        width: of the tokens; a multiple of ``heads``.
        depth: layers.
        heads: of attention.
        dropout: on vectors and in every layer.
        source_dropout: share of the known sources hidden in each step.
        learning_rate: of Adam, at the top of its warm-up and cosine schedule.
        weight_decay: decoupled.
        epochs: of the schedule, and the most that are trained.
        n_components: of the training effects that are predicted.
        folds: of the cross-validation.
        seeds: networks averaged.
        seed: of all draws.
        trials: settings of ``SPACE`` tried by Optuna in the same cross-validation; 0 takes those given.

    Returns:
        The model. Singles are predicted from their embeddings. A combination is the sum over its genes, of the
        training effect of the single where there is one, else of the predicted single.

    Raises:
        InputError: a source that is not there, or trials without Optuna.
    """
    given_sources = chosen_sources(data, embedding, "fusion")
    lacking = f"no vector in {' or '.join(given_sources)}"
    sources = _scaled(given_sources, data.conditions)
    known = set().union(*sources.values())
    rows = sorted((c, k) for c, k in zip(data.conditions, data.contexts, strict=True) if c in known)
    names = {c for c in data.conditions if any(c in source for source in given_sources.values())}
    zero = np.zeros(len(data.genes))
    singles = {k: data.table(k) for k in (*set(data.contexts), "")}
    single, notes, study = None, (), ()
    if len({c for c, _ in rows}) >= FEWEST:
        given = {"width": width, "depth": depth, "heads": heads, "dropout": dropout, "source_dropout": source_dropout}
        more = {"learning_rate": learning_rate, "weight_decay": weight_decay, "epochs": epochs}
        single, notes, study = _networks(
            data, sources, rows, given, more | {"n_components": n_components}, folds, seeds, seed, trials
        )

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        table, genes = singles.get(context, singles[""]), genes_of(condition)
        asked = [g for g in genes if len(genes) == 1 or g not in table]
        if asked and single is None:
            return f"{len(names)} training singles have a vector and at least {FEWEST} are needed"
        absent = [g for g in asked if g not in known]
        if absent:
            return f"{lacking}: {some(absent)}"
        return sum((single(g, context) if g in asked else table[g] for g in genes), zero)

    return Model("fusion", data.genes, one_context(data), rule, notes, study)


def _networks(data, sources: Sources, rows, shape, training, n_folds, seeds, seed, trials):
    """The predictor of single genes, notes and study."""
    # Networks take a second to import: only where one is fitted.
    from scbig.baselines import ensemble
    from scbig.baselines.fusion_network import FusionConfig, FusionNet, Inputs
    from scbig.baselines.validation import search

    contexts = sorted({k for _, k in rows})
    number = {k: i for i, k in enumerate(contexts)}
    dims = tuple(len(next(iter(source.values()))) for source in sources.values())

    def inputs(genes: Sequence[str], where: Sequence[str]) -> Inputs:
        vectors = tuple(
            np.stack([np.asarray(s.get(g, np.zeros(d)), np.float32) for g in genes])
            for s, d in zip(sources.values(), dims, strict=True)
        )
        known = np.array([[g in s for s in sources.values()] for g in genes])
        return Inputs(vectors, known, np.array([number.get(k, len(contexts)) for k in where], np.int32))

    at = {key: i for i, key in enumerate(zip(data.conditions, data.contexts, strict=True))}
    names, where = zip(*rows, strict=True)
    given = inputs(names, where)
    effects = ensemble.without_own(data.effects[[at[r] for r in rows]], names, data.genes, given.context)
    task = ensemble.Task(tuple(names), given.context, given, effects)
    n_out = min(training["n_components"], len(rows))

    def prepare(settings: Mapping[str, float]):
        settings = dict(settings)
        per_head = settings.pop("head_width", None)
        merged = shape | training | settings | ({"width": round(per_head) * shape["heads"]} if per_head else {})
        config = FusionConfig(**{k: merged[k] for k in shape})
        recipe = ensemble.Recipe(**{k: merged[k] for k in training})
        return lambda rngs: FusionNet(config, dims, len(contexts), n_out, rngs=rngs), recipe

    best, study, notes = {}, (), ()
    if trials:

        def gain(settings: Mapping[str, float]) -> float:
            make, recipe = prepare(settings)
            return ensemble.choose(make, task, recipe, n_folds, seed).value

        best, study = search(gain, SPACE, trials, seed)
        notes = (", ".join(f"{k} {v:.3g}" for k, v in best.items()),)
    make, recipe = prepare(best)
    choice = ensemble.choose(make, task, recipe, n_folds, seed)
    means, deviations = ensemble.fit_ensemble(make, task, recipe, choice, seeds, seed)

    @cache
    def single(gene: str, context: str) -> np.ndarray:
        return means[number.get(context, len(contexts))] + deviations(inputs([gene], [context]))[0]

    told = (
        f"{choice.epochs} epochs, amplitude {choice.amplitude:g}, gain {choice.value:.3f} ± {choice.error:.3f} "
        f"over the mean in cross-validation, {len(set(names))} training singles"
    )
    return single, (*notes, told), study


def _scaled(sources: Sources, conditions: Sequence[str]) -> Sources:
    """Vectors less their mean over training genes, at unit mean square, by source in order of name.

    A source that hardly any training gene is known to has no weights of its own to learn and is left out.
    """
    out = {}
    for name, source in sorted(sources.items()):
        seen = [source[g] for g in sorted(set(conditions)) if g in source]
        if len(seen) < FEWEST:
            continue
        centre = np.mean(seen, axis=0)
        size = np.sqrt(np.mean(np.square(np.stack(seen) - centre)))
        if size > 0:
            out[name] = {g: (v - centre) / size for g, v in source.items()}
    return out
