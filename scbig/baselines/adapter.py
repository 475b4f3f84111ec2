"""A perturbation-conditioned adapter over modules of genes, masked by gene similarity, with an adaptive loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from scbig.baselines.base import Embedding, Model, TrainingData, one_context
from scbig.baselines.smoother import FEWEST
from scbig.baselines.sources import chosen_sources, side_by_side
from scbig.baselines.validation import folds as deal
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = ["fit"]

_MASKS = ("go", "none", "random")
_LOSSES = ("adaptive", "mse")
_WATCHED = 8  # epochs of the schedule that are looked at


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    *,
    gene_embeddings: Embedding | None = None,
    adapter: bool = True,
    mask: str = "go",
    loss: str = "adaptive",
    n_tokens: int = 64,
    n_patterns: int = 6,
    neighbours: int = 8,
    width: int = 96,
    latent: int = 64,
    adapter_width: int = 32,
    dropout: float | int = 0.1,
    learning_rate: float | int = 3e-3,
    weight_decay: float | int = 0.05,
    epochs: int = 40,
    folds: int = 3,
    seeds: int = 2,
    seed: int = 0,
    stop: int = 0,
    keep: float | int = 1.0,
) -> Model:
    """Predicts effects of genes and sets of genes by a network with PertAdapt's two ideas (2025).

    Tokens are modules of measured genes, from given gene embeddings and from what responds together in training; of each
    the network predicts a few patterns, as a deviation from the mean training effect of the context. A plain network
    reads them from the embeddings of the perturbed genes, added up in a latent. The adapter adds what it makes of the
    tokens themselves, in attention that a module pays to the modules nearest to it in the gene embeddings. The adaptive
    loss weighs genes by how far the condition moves them, from uniform to differential over the training.

    How long to train, and which share of the deviation to keep, is chosen by cross-validation over training conditions;
    where that finds no skill, the mean is predicted.

    Args:
        data: training effects; singles and combinations are learned from.
        embedding: sources in ``data.embeddings`` of the perturbed genes, side by side. None: all there are, and without
            any the gene's identity. An empty list asks for identities.
        gene_embeddings: vectors of measured genes, and of perturbed ones, such as of their GO terms: of the tokens, and
            of the mask. Without them both are taken from what genes respond to in training.
        adapter: whether there is one.
        mask: ``"go"``, by similarity of the gene embeddings; ``"random"``, as many neighbours drawn at random; or
            ``"none"``, no mask.
        loss: ``"adaptive"`` or ``"mse"``.
        n_tokens: modules.
        n_patterns: of each, that are predicted.
        neighbours: of each module in the mask.
        width: of the hidden layers.
        latent: dimensions in which genes add up.
        adapter_width: of the adapter's tokens.
        dropout: on hidden layers.
        learning_rate: of Adam, at the top of its warm-up and cosine schedule.
        weight_decay: decoupled.
        epochs: of the schedule, and the most that are trained.
        folds: of the cross-validation. With identities only combinations are left out whose singles are in training.
        seeds: networks averaged.
        seed: of all draws.
        stop: epochs to train, where they are known; 0 chooses them and the share by cross-validation.
        keep: the share of the deviation to keep; only with ``stop``.

    Raises:
        InputError: a source that is not there, or another mask or loss.
    """
    if mask not in _MASKS or loss not in _LOSSES:
        raise InputError(f"mask is one of {', '.join(_MASKS)} and loss one of {', '.join(_LOSSES)}, not {mask}, {loss}")
    features, lacking, by_identity = _features(data, embedding)
    keys = zip(data.conditions, data.contexts, strict=True)
    rows = sorted((k, i) for i, k in enumerate(keys) if all(g in features for g in genes_of(k[0])))
    zero, found = np.zeros(len(data.genes)), None
    if len({c for (c, _), _ in rows}) >= FEWEST:
        options = _Options(
            adapter, mask, loss == "adaptive", n_tokens, n_patterns, neighbours, width, latent, adapter_width, dropout,
            learning_rate, weight_decay, epochs, folds, seeds, seed, stop, keep,
        )  # fmt: skip
        found = _networks(data, rows, features, by_identity, gene_embeddings, options)

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        absent = [g for g in genes_of(condition) if g not in features]
        if absent:
            return f"{lacking}: {some(absent)}"
        if found is None:
            return f"{len(rows)} training conditions can be used and at least {FEWEST} are needed"
        return found.predict(condition, context)

    def account(condition: str, context: str) -> dict[str, float | str]:
        if found is None or condition == CONTROL:
            return {}
        return {"basis": "adapter" if found.kept else "mean", "skill": found.skill, "kept": found.kept}

    notes, settings = ((), {}) if found is None else (found.notes, {"stop": found.epochs, "keep": found.kept})
    return Model("adapter", data.genes, one_context(data), rule, notes, account=account, settings=settings)


def _features(data: TrainingData, embedding) -> tuple[dict[str, np.ndarray], str, bool]:
    """Features of perturbed genes, why a gene may have none, and whether they are identities."""
    trained = sorted({g for c in data.conditions for g in genes_of(c)})
    if not data.embeddings if embedding is None else not isinstance(embedding, str) and not len(embedding):
        return dict(zip(trained, np.eye(len(trained)), strict=True)), "in no training condition", True
    sources = dict(sorted(chosen_sources(data, embedding, "adapter").items()))
    vectors = side_by_side(sources)
    # In units of the training genes', so that no other gene has a part in the fit.
    seen = [np.mean(np.square(vectors[g])) for g in trained if g in vectors]
    size = np.sqrt(np.mean(seen)) if seen else 1.0
    told = {g: np.concatenate([v / size, [float(g in s) for s in sources.values()]]) for g, v in vectors.items()}
    return told, f"no vector in {' or '.join(sources)}", False


@dataclass(frozen=True)
class _Options:
    adapter: bool
    mask: str
    adaptive: bool
    n_tokens: int
    n_patterns: int
    neighbours: int
    width: int
    latent: int
    adapter_width: int
    dropout: float | int
    learning_rate: float | int
    weight_decay: float | int
    epochs: int
    folds: int
    seeds: int
    seed: int
    stop: int
    keep: float | int


@dataclass(frozen=True)
class _Found:
    """The fitted network as a rule, and what cross-validation found."""

    predict: object
    notes: tuple[str, ...]
    skill: float
    kept: float
    epochs: int


def _networks(data, rows, features, by_identity, gene_embeddings, o: _Options) -> _Found:
    # Networks take a second to import: only where one is fitted.
    from scbig.baselines import adapter_network as net
    from scbig.baselines import ensemble
    from scbig.baselines.adapter_tokens import build_tokens, gene_vectors
    from scbig.baselines.latent_additive_network import GeneSets
    from scbig.nn.adapter import AdapterConfig, nearest, shuffled

    names, where = zip(*(k for k, _ in rows), strict=True)
    number = {k: i for i, k in enumerate(sorted(set(where)))}
    context = np.array([number[k] for k in where], np.int32)
    effects = ensemble.without_own(data.effects[[i for _, i in rows]], names, data.genes, context)
    outside = None if gene_embeddings is None else gene_embeddings.rows()
    dims = len(next(iter(features.values())))
    schedule = net.Schedule(o.learning_rate, o.weight_decay, o.epochs, adaptive=o.adaptive)

    def prepare(train: np.ndarray):
        """All that is learned from the effects of some rows only: means, tokens, mask, targets; and the inputs."""
        means = ensemble.context_means(effects[train], context[train], len(number))
        deviations = (effects - means[context]).astype(np.float32)
        vectors, response = gene_vectors(deviations[train], data.genes, outside)
        tokens = build_tokens(deviations[train], data.genes, vectors, response, o.n_tokens, o.n_patterns, o.seed)
        allowed = None if o.mask == "none" else nearest(tokens.vectors, tokens.known, o.neighbours)
        if o.mask == "random":
            allowed = shuffled(allowed, generator(o.seed, "random mask"))
        fixed = net.Fixed(tokens.vectors * np.sqrt(tokens.vectors.shape[1], dtype=np.float32), allowed)
        targets, scale = _targets(net, deviations, effects, train, tokens, o.adaptive)

        def inputs(conditions: Sequence[str], contexts: Sequence[int] | np.ndarray):
            genes = [genes_of(c) for c in conditions]
            x = np.zeros((len(genes), max(map(len, genes)), dims), np.float32)
            for i, each in enumerate(genes):
                for j, gene in enumerate(each):
                    x[i, j] = features[gene]
            present = np.array([[j < len(each) for j in range(x.shape[1])] for each in genes])
            touch = np.stack([tokens.touch(c, vectors) for c in conditions])
            return net.Given(GeneSets(x, present, np.asarray(contexts, np.int32)), touch)

        shape = (len(tokens.vectors), o.n_patterns, tokens.vectors.shape[1])
        config = AdapterConfig(o.adapter_width, 4, 1, o.dropout) if o.adapter else None

        def make(rngs):
            return net.AdapterNet(dims, len(number), shape, o.width, o.latent, o.dropout, config, rngs=rngs)

        return means, tokens, fixed, targets, scale, inputs, make

    every = np.arange(len(names))
    candidates = sorted(set(names))
    if by_identity:
        candidates = [c for c in candidates if len(genes_of(c)) > 1 and set(genes_of(c)) <= set(names)]
    epochs, kept, skill, told = o.epochs, 1.0, float("nan"), "no training combinations to choose them on"
    if o.stop:
        epochs, kept, told = o.stop, float(o.keep), "as given"
    elif len(candidates) >= FEWEST:
        watched = sorted({max(1, round(o.epochs * k / _WATCHED)) for k in range(1, _WATCHED + 1)})
        correlation = np.full((len(names), len(watched)), np.nan)
        products, powers = np.zeros((2, len(names), len(watched)))
        for fold, left in enumerate(deal(candidates, o.folds, o.seed)):
            out = np.flatnonzero(np.isin(names, left))
            rest = np.setdiff1d(every, out)
            means, tokens, fixed, targets, scale, inputs, make = prepare(rest)
            given, truth = inputs(names, context), effects[out] - means[context[out]]

            def look(epoch, member, given=given, fixed=fixed, out=out, truth=truth, basis=tokens.basis, scale=scale):
                if epoch in watched:
                    at = watched.index(epoch)
                    predicted = scale * net.predict(member, given, fixed)[out] @ basis
                    correlation[out, at] = _correlations(predicted, truth)
                    products[out, at], powers[out, at] = (predicted * truth).sum(1), np.square(predicted).sum(1)

            net.train(make, given, fixed, targets, rest, schedule, o.seed + fold, o.epochs, look)
        seen = ~np.isnan(correlation[:, 0])
        mean = correlation[seen].mean(axis=0)
        at = int(np.argmax(mean))
        epochs, skill = watched[at], float(mean[at])
        error = float(correlation[seen, at].std() / np.sqrt(seen.sum()))
        # What least squares keeps of the deviation on conditions left out; nothing where the skill may be chance.
        share = float(products[seen, at].sum() / max(powers[seen, at].sum(), 1e-12))
        kept = float(np.clip(share, 0.0, 1.0)) if skill > 2 * error else 0.0
        told = f"correlation {skill:.3f} ± {error:.3f} with deviations left out in cross-validation"
    means, tokens, fixed, targets, scale, inputs, make = prepare(every)
    given, members = inputs(names, context), []
    if kept > 0:
        members = [
            net.train(make, given, fixed, targets, every, schedule, 1000 + o.seed + i, epochs) for i in range(o.seeds)
        ]

    @cache
    def predict(condition: str, context: str) -> Float[np.ndarray, " genes"]:
        mean = means[number.get(context, len(number))]
        if not members:
            return mean
        asked = inputs([condition], [number.get(context, len(number))])
        coefficients = np.mean([net.predict(member, asked, fixed)[0] for member in members], axis=0)
        return mean + kept * scale * coefficients @ tokens.basis

    about = f"{epochs} epochs, {kept:.2f} of the deviation kept, {told}, {len(set(names))} training conditions"
    by = "gene embeddings" if outside is not None else "co-response in training, for want of gene embeddings"
    return _Found(predict, (about, f"{len(tokens.vectors)} modules by {by}"), skill, kept, epochs)


def _targets(net, deviations, effects, train, tokens, adaptive: bool):
    """What the losses compare with, in units of the coefficients' root mean square; rows left out are zero."""
    from scbig import losses

    n_tokens, n_patterns = len(tokens.vectors), tokens.n_patterns
    shape = (len(deviations), n_tokens, n_patterns)
    values = np.zeros(shape, np.float32)
    values[train] = (deviations[train] @ tokens.basis.T).reshape(len(train), *shape[1:])
    power = np.square(deviations[train]).sum(axis=1)
    scale = float(np.sqrt(power.mean() / (n_tokens * n_patterns))) or 1.0
    gram, weighted = np.zeros((*shape, n_patterns if adaptive else 0), np.float32), np.zeros(shape, np.float32)
    if adaptive:
        weights = losses.differential_weights(effects[train], losses.noise_floor(effects[train]))
        for k in range(n_tokens):
            members = np.flatnonzero(tokens.module == k)
            patterns = tokens.basis[k * n_patterns : (k + 1) * n_patterns, members]
            w = weights[:, members]
            gram[train, k] = np.einsum("pg,rg,qg->rpq", patterns, w, patterns, optimize=True)
            weighted[train, k] = (w * deviations[np.ix_(train, members)]) @ patterns.T
    row = np.zeros(len(deviations), np.float32)
    # Conditions of strong effect do not rule: as in the other networks, nearly all weigh as much as their share.
    row[train] = (power / (power.mean() or 1.0) + 1e-3) ** -0.1
    return net.Targets(values / scale, gram, weighted / scale, row), scale


def _correlations(x: Float[np.ndarray, "n genes"], y: Float[np.ndarray, "n genes"]) -> Float[np.ndarray, " n"]:
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (x, y))
    size = np.sqrt(np.square(x).sum(axis=1) * np.square(y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.zeros(len(x)), where=size > 1e-20)
