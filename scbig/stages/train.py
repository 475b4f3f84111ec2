"""The stages that train: the autoencoder and the flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import jax.numpy as jnp
import numpy as np
import zarr
from ml_collections import ConfigDict

from scbig import evaluation, losses, priors, training
from scbig.console import say
from scbig.data.conditions import genes_of
from scbig.errors import InputError
from scbig.files import atomic
from scbig.run import Run
from scbig.stages.common import aliases, load_prepared, prior_file, semantic
from scbig.training import assemble, autoencoder
from scbig.training.checkpoint import save_params
from scbig.training.holdout import hold_out
from scbig.training.populations import build, watch
from scbig.training.vocabulary import IDENTITY, Vocabulary, group_cells

__all__ = ["pretrain", "train"]


def _module_summary(result: Any, vectors: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean embedding of each module's known genes, and which modules have any."""
    index, filled = result.layout()
    known = filled & mask[index]
    total = np.einsum("ks,ksd->kd", known.astype(np.float32), vectors[index])
    count = known.sum(axis=1)
    return (total / np.maximum(count, 1)[:, None]).astype(np.float32), count > 0


def pretrain(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Trains the autoencoder and encodes all cells."""
    adata, _, part = load_prepared(run)
    result = assemble.load_modules(run, adata.var_names)
    vectors, mask = semantic(settings, adata, part, {})
    summary, known = _module_summary(result, vectors, mask)
    assemble.save_summary(run, summary, known)
    auto = assemble.new_autoencoder(settings, result, summary, known)
    train, kept = hold_out(adata.obs, part == "train", settings.holdout_fraction, settings.seed)
    config = assemble.record(training.PretrainConfig, settings.pretrain)
    auto, state = training.pretrain(
        auto, adata.X, train, kept, config, settings.seed, run.path("gcae/checkpoints"), run.folder
    )
    autoencoder.save(auto, run.path("gcae/params"))
    obs = adata.obs[["condition", "context", "batch"] + (["dose"] if "dose" in adata.obs else [])].copy()
    obs["part"] = part
    latents = ad.AnnData(training.encode_all(auto, adata.X), obs=obs)
    with atomic(run.path("latents.zarr")) as temporary:
        _write_zarr(latents, temporary)
    remarks |= {"best_step": int(state.best_step), "held_out_error": float(state.best_score)}


def _write_zarr(cells: ad.AnnData, path: Path) -> None:
    """Format 3 without shards, said outright: AnnData's defaults for both are about to change."""
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(zarr.open_group(str(path), mode="w", zarr_format=3), "/", cells)


def _vocabulary(settings: ConfigDict, perturbations: list[str], contexts: list[str]) -> Vocabulary:
    """Embeddings of all perturbations that the named sources know, and one-hots of those trained on."""
    names = [name for name in settings.priors.condition if name != IDENTITY]
    found = {Path(name).name.split(".")[0]: priors.read_embedding(prior_file(settings, name)) for name in names}
    embeddings = {name: (each.genes, each.vectors) for name, each in found.items()}
    table = aliases(settings)
    alias = {name: table.mapping(each.genes) for name, each in found.items()}
    return Vocabulary.build(embeddings, perturbations, IDENTITY in settings.priors.condition, alias, contexts)


def _alignment(settings: ConfigDict, adata, result, auto, z, number, train, groups) -> training.Alignment | None:
    """Targets of the alignment losses, from training cells alone."""
    if not (settings.flow.lambda_corr or settings.flow.lambda_path):
        return None
    index, filled = result.layout()
    averaging = np.zeros((result.n_modules, adata.n_vars), np.float32)
    averaging[np.nonzero(filled)[0], index[filled]] = 1.0
    averaging /= np.maximum(averaging.sum(axis=1, keepdims=True), 1.0)
    target = np.zeros((len(groups), result.n_modules, result.n_modules), np.float32)
    for place in range(len(groups)):
        cells = z[train & (number == place)]
        # Reconstructions, since decoded predictions are as smooth as these and not as noisy as real cells.
        target[place] = losses.shrunk_correlation(training.decode_all(auto, cells) @ averaging.T)
    pathways = np.zeros((1, adata.n_vars), np.float32)
    if settings.flow.lambda_path:
        if not settings.priors.pathways:
            raise InputError(
                "the pathway loss needs --config.priors.pathways=FILE.gmt, or --config.flow.lambda_path=0.0"
            )
        limits = settings.priors.min_pathway, settings.priors.max_pathway
        found = priors.membership(
            priors.read_gmt(prior_file(settings, settings.priors.pathways)),
            list(adata.var_names),
            *limits,
            aliases(settings),
        )
        pathways = found.matrix
        say(f"train: {len(found.names)} pathways; {found.coverage.line()}")
    activity = np.asarray(adata.X @ pathways.T, np.float32)
    return training.Alignment(*map(jnp.asarray, (target, averaging, pathways, activity)))


def _with_validation(adata, val, kept, number, groups, vocabulary):
    """Adds the cells of the validation part to those watched: more cells of trained groups, and groups of their own."""
    found, others = group_cells(adata.obs[val])
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
    """Trains the flow in the latent space."""
    adata, _, part = load_prepared(run)
    result = assemble.load_modules(run, adata.var_names)
    auto = assemble.load_autoencoder(run, settings, adata.var_names)
    z = np.asarray(ad.read_zarr(run.path("latents.zarr")).X, np.float32)
    trainable = part == "train"
    train, kept = hold_out(adata.obs, trainable, settings.holdout_fraction, settings.seed)
    number = np.full(adata.n_obs, -1)
    number[trainable], groups = group_cells(adata.obs[trainable])
    perturbations = sorted({gene for group in groups for gene in genes_of(group.condition)})
    contexts = sorted(adata.obs["context"].astype(str)[trainable].unique())
    vocabulary = _vocabulary(settings, perturbations, contexts)
    conditions = vocabulary.conditions(groups)
    kept, number, watchable = _with_validation(adata, part == "val", kept, number, groups, vocabulary)
    remarks["without_embedding"] = vocabulary.coverage(perturbations)
    for source, missing in remarks["without_embedding"].items():
        say(f"train: {source} knows {len(perturbations) - len(missing)} of {len(perturbations)} trained perturbations")
    space = evaluation.Space.fit(adata.X[trainable], seed=settings.seed)
    f = settings.flow
    populations, report = build(
        z, adata.obs, train, number, groups, conditions,
        by_batch=f.match_batch, coupling=f.coupling, epsilon=f.epsilon, seed=settings.seed,
    )  # fmt: skip
    watched = watch(
        z, space.project(adata.X).astype(np.float32), adata.obs, kept, number, watchable, vocabulary.conditions(watchable),
        len(groups), f.watch_cells, f.watch_conditions, settings.seed,
    )  # fmt: skip
    alignment = _alignment(settings, adata, result, auto, z, number, train, groups)
    task = training.FlowTask(
        None,
        populations,
        auto,
        alignment,
        watched,
        jnp.asarray(space.components.T, jnp.float32),
        jnp.asarray(space.mean, jnp.float32),
    )
    network = assemble.new_flow(settings, vocabulary)
    config = assemble.record(training.FlowConfig, f)
    state = training.train_flow(network, task, config, settings.seed, run.path("flow/checkpoints"), run.folder)
    vocabulary.save(run.path("flow/conditions.npz"))
    save_params(run.path("flow/params"), state.best)
    remarks |= report | {"best_step": int(state.best_step), "held_out_score": float(state.best_score)}
