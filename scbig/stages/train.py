"""The stages that train: the autoencoder and the flow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from scbig import devices, evaluation, losses, priors, training
from scbig.anchor import save_no_anchor
from scbig.console import say
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.latents import read_latents, write_latents
from scbig.data.store import Rows, Store
from scbig.errors import InputError
from scbig.rng import generator
from scbig.run import Run
from scbig.stages.anchoring import Anchored, fit_anchor, gated, starts, thinned
from scbig.stages.common import aliases, open_prepared, prior_file, semantic
from scbig.training import assemble, autoencoder
from scbig.training.checkpoint import save_params
from scbig.training.holdout import hold_out
from scbig.training.populations import build, watch
from scbig.training.vocabulary import IDENTITY, Vocabulary, group_cells

__all__ = ["pretrain", "train"]

_BLOCK = 4096  # cells read at once
_FAILED = 0.01  # share of the variance of held-out cells below which an autoencoder is worth nothing
_SPACE_CELLS = 50_000  # training cells that the space to stop in is fitted on
_CORRELATED = 512  # cells of a group that its target correlation is taken from
_MOST_ACTIVE, _FEWEST_ACTIVE = 512, 32  # cells of a group whose pathway activities are kept
_ACTIVITIES = 1 << 26  # activities kept in all, unless that leaves a group fewer cells than the fewest


def _module_summary(result: Any, vectors: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean embedding of each module's known genes, and which modules have any."""
    index, filled = result.layout()
    known = filled & mask[index]
    total = np.einsum("ks,ksd->kd", known.astype(np.float32), vectors[index])
    count = known.sum(axis=1)
    return (total / np.maximum(count, 1)[:, None]).astype(np.float32), count > 0


def pretrain(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Trains the autoencoder and encodes all cells; the screen stays on disk."""
    with open_prepared(run) as (screen, _, part):
        result = assemble.load_modules(run, screen.var_names)
        vectors, mask = semantic(settings, screen, part, {})
        summary, known = _module_summary(result, vectors, mask)
        auto = assemble.new_autoencoder(settings, result, summary, known)
        train, kept = hold_out(screen.obs, part == "train", settings.holdout_fraction, settings.seed)
        config = assemble.record(training.PretrainConfig, settings.pretrain)
        depth = None
        if auto.counts is not None:
            if screen.uns["scbig"].get("normalization") == "given":
                raise InputError(
                    "--config.gcae.likelihood=negative_binomial needs counts, and the screen was read as log-normalised: "
                    "name the layer that holds them with --config.data.layer, or set --config.gcae.likelihood=gaussian"
                )
            depth = autoencoder.depths(screen.obs["size_factor"].to_numpy(), screen.uns["scbig"])
        auto, state = training.pretrain(
            auto, screen.X, train, kept, config, settings.seed, run.path("gcae/checkpoints"), run.folder, depth
        )
        if not devices.is_first():
            return
        assemble.save_summary(run, summary, known)
        autoencoder.save(auto, run.path("gcae/params"))
        columns = ["condition", "context", "batch", *(["dose"] if "dose" in screen.obs else [])]
        obs = screen.obs[columns].assign(part=pd.Categorical(part)).set_axis(screen.names())
        write_latents(run.path("latents.zarr"), obs, autoencoder.encode_blocks(auto, screen.X), settings.gcae.latent)
    explained = max(line["explained"] for line in training.read_metrics(run.folder, "pretrain"))
    if explained < _FAILED:
        say(
            f"pretrain: the autoencoder explains {explained:.1%} of the variance of held-out cells: it has learned nothing, "
            "and what follows cannot either; lower --config.pretrain.learning_rate, or give it more epochs"
        )
    remarks |= {"best_step": int(state.best_step), "held_out_error": float(state.best_score), "explained": explained}


def _vocabulary(settings: ConfigDict, perturbations: list[str], contexts: list[str]) -> Vocabulary:
    """Embeddings of all perturbations that the named sources know, and one-hots of those trained on."""
    names = [name for name in settings.priors.condition if name != IDENTITY]
    found = {Path(name).name.split(".")[0]: priors.read_embedding(prior_file(settings, name)) for name in names}
    embeddings = {name: (each.genes, each.vectors) for name, each in found.items()}
    table = aliases(settings)
    alias = {name: table.mapping(each.genes) for name, each in found.items()}
    return Vocabulary.build(embeddings, perturbations, IDENTITY in settings.priors.condition, alias, contexts)


def _alignment(settings: ConfigDict, screen, result, auto, z, populations, train) -> training.Alignment | None:
    """Targets of the alignment losses, from training cells alone."""
    if not (settings.flow.lambda_corr or settings.flow.lambda_path or settings.flow.lambda_gene):
        return None
    index, filled = result.layout()
    averaging = np.zeros((result.n_modules, screen.n_vars), np.float32)
    averaging[np.nonzero(filled)[0], index[filled]] = 1.0
    averaging /= np.maximum(averaging.sum(axis=1, keepdims=True), 1.0)
    targets, start = np.asarray(populations.targets), np.asarray(populations.start)
    members = np.split(targets, start[1:])
    target = np.zeros((len(members), result.n_modules, result.n_modules), np.float32)
    random = generator(settings.seed, "alignment cells")
    for place, each in enumerate(members):
        cells = z[_some_of(each, _CORRELATED, random)]
        # Reconstructions, since decoded predictions are as smooth as these and not as noisy as real cells.
        target[place] = losses.shrunk_correlation(training.decode_all(auto, cells) @ averaging.T)
    pathways = np.zeros((1, screen.n_vars), np.float32)
    if settings.flow.lambda_path:
        if not settings.priors.pathways:
            raise InputError(
                "the pathway loss needs --config.priors.pathways=FILE.gmt, or --config.flow.lambda_path=0.0"
            )
        limits = settings.priors.min_pathway, settings.priors.max_pathway
        found = priors.membership(
            priors.read_gmt(prior_file(settings, settings.priors.pathways)),
            list(screen.var_names),
            *limits,
            aliases(settings),
        )
        pathways = found.matrix
        say(f"train: {len(found.names)} pathways; {found.coverage.line()}")
    activity, row = _activity(screen.X, pathways, members, random)
    alignment = training.Alignment(*map(jnp.asarray, (target, averaging, pathways, activity, row)))
    if settings.flow.lambda_gene:
        contexts = screen.obs["context"].astype(str).to_numpy()
        controls = np.flatnonzero(train & (screen.obs["condition"] == CONTROL).to_numpy())
        pools = [controls[contexts[controls] == contexts[each[0]]] for each in members]
        mean, weight = _gene_targets(screen.X, auto, z, members, pools, random)
        alignment = alignment._replace(mean=jnp.asarray(mean), weight=jnp.asarray(weight))
    return alignment


def _gene_targets(x: Rows, auto, z, members, pools, random) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group's reconstructed cells, and weights of its genes by Welch's t against its pool of controls."""

    def moments(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = x[np.sort(_some_of(cells, _CORRELATED, random))].toarray()
        return values.mean(axis=0), values.var(axis=0) / max(len(values) - 1, 1)

    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    mean, effects, errors = [], [], []
    for cells, pool in zip(members, pools, strict=True):
        if pool.tobytes() not in known:
            known[pool.tobytes()] = moments(pool)
        (base, noise), (here, error) = known[pool.tobytes()], moments(cells)
        effects.append(here - base)
        # The floor keeps genes that no cell expresses from a division by zero.
        errors.append(np.sqrt(error + noise + 1e-12))
        mean.append(training.decode_all(auto, z[_some_of(cells, _CORRELATED, random)]).mean(axis=0))
    weight = losses.differential_weights(np.stack(effects), np.stack(errors))
    return np.stack(mean).astype(np.float32), weight


def _some_of(members: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return members if len(members) <= most else np.sort(random.choice(members, most, replace=False))


def _activity(
    x: Rows, pathways: np.ndarray, members: list[np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pathway activity of some training cells of every group, and for every cell the row that it has there.

    Where a group has more cells than are kept, the others have the row of one that is: a draw from the group's cells
    stays a draw from its cells.
    """
    most = int(np.clip(_ACTIVITIES // (len(members) * len(pathways)), _FEWEST_ACTIVE, _MOST_ACTIVE))
    chosen = [_some_of(each, most, random) for each in members]
    kept = np.sort(np.concatenate(chosen))
    row = np.zeros(x.shape[0], np.int32)
    row[kept] = np.arange(len(kept), dtype=np.int32)
    for each, own in zip(members, chosen, strict=True):
        others = np.setdiff1d(each, own, assume_unique=True)
        row[others] = row[own[random.integers(0, len(own), len(others))]]
    blocks = [block @ pathways.T for block in x.chosen(kept).blocks(_BLOCK)]
    return np.concatenate(blocks).astype(np.float32), row


def _with_validation(screen, val, kept, number, groups, vocabulary):
    """Adds the cells of the validation part to those watched: more cells of trained groups, and groups of their own."""
    found, others = group_cells(screen.obs[val])
    places = {group: place for place, group in enumerate(groups)}
    watchable = list(groups)
    for group in others:
        if (
            group not in places
            and group.context in vocabulary.contexts
            and not vocabulary.unknown(genes_of(group.condition))
        ):
            places[group] = len(watchable)
            watchable.append(group)
    number = number.copy()
    number[val] = [places.get(others[each], -1) if each >= 0 else -1 for each in found]
    return kept | val, number, watchable


def train(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Trains the flow in the latent space; of the screen only the cells that are looked at are read."""
    with open_prepared(run) as (screen, _, part):
        task, vocabulary, anchored, report = _flow_task(run, settings, screen, part)
    remarks |= report
    network = assemble.new_flow(settings, vocabulary)
    config = assemble.record(training.FlowConfig, settings.flow)
    if anchored is not None:
        # The anchor stands where the shift would: the flow learns what is left.
        config = replace(config, shift=0.0)
    state = training.train_flow(network, task, config, settings.seed, run.path("flow/checkpoints"), run.folder)
    if not devices.is_first():
        return
    if anchored is None:
        save_no_anchor(run.path("flow/anchor.npz"))
    else:
        watched = training.evidence(network, state.best, task, config, anchored.kinds)
        gated(settings, anchored, watched, remarks).save(run.path("flow/anchor.npz"))
    vocabulary.save(run.path("flow/conditions.npz"))
    save_params(run.path("flow/params"), state.best)
    remarks |= {"best_step": int(state.best_step), "held_out_score": float(state.best_score)}


def _flow_task(
    run: Run, settings: ConfigDict, screen: Store, part: np.ndarray
) -> tuple[training.FlowTask, Vocabulary, Anchored | None, dict]:
    """What the flow is trained on, what is known of the perturbations, the anchor, and remarks for the record."""
    f, seed = settings.flow, settings.seed
    result = assemble.load_modules(run, screen.var_names)
    auto = assemble.load_autoencoder(run, settings, screen.var_names)
    z = read_latents(run.path("latents.zarr"))
    trainable = part == "train"
    train, kept = hold_out(screen.obs, trainable, settings.holdout_fraction, seed)
    number = np.full(screen.n_obs, -1)
    number[trainable], groups = group_cells(screen.obs[trainable])
    perturbations = sorted({gene for group in groups for gene in genes_of(group.condition)})
    contexts = sorted(map(str, screen.obs["context"][trainable].unique()))
    vocabulary = _vocabulary(settings, perturbations, contexts)
    kept, number, watchable = _with_validation(screen, part == "val", kept, number, groups, vocabulary)
    lacking = vocabulary.coverage(perturbations)
    for source, missing in lacking.items():
        say(f"train: {source} knows {len(perturbations) - len(missing)} of {len(perturbations)} trained perturbations")
    seen = _some_of(np.flatnonzero(trainable), _SPACE_CELLS, generator(seed, "space cells"))
    space = evaluation.Space.fit(screen.X.chosen(seen), seed=seed)
    remarks: dict[str, Any] = {"without_embedding": lacking}
    module = dict(zip(result.genes, map(str, result.module), strict=True))
    anchored = fit_anchor(settings, screen, part, watchable, len(groups), module, remarks)
    moved, usable = None, train
    if anchored is not None:
        usable = thinned(settings, screen.obs, train)
        moved = starts(settings, screen, anchored, auto, space, usable | kept)
    populations, report = build(
        z, screen.obs, usable, number, groups, vocabulary.conditions(groups), by_batch=f.match_batch,
        coupling=f.coupling, epsilon=f.epsilon, seed=seed, starts=moved, most=settings.anchor.pool,
    )  # fmt: skip
    watched = watch(
        z, lambda rows: space.project(screen.X[rows]).astype(np.float32), screen.obs, kept, number, watchable,
        vocabulary.conditions(watchable), len(groups), f.watch_cells, f.watch_conditions, seed, moved,
    )  # fmt: skip
    alignment = _alignment(settings, screen, result, auto, z, populations, train)
    loadings, origin = (jnp.asarray(each, jnp.float32) for each in (space.components.T, space.mean))
    task = training.FlowTask(None, populations, auto, alignment, watched, loadings, origin)
    return task, vocabulary, anchored, report | remarks
