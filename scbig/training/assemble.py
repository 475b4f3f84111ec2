"""Networks from a configuration, and from what a run directory holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from scbig import rng
from scbig.errors import InputError
from scbig.files import atomic
from scbig.modules import Modules
from scbig.nn import ConditionEncoderConfig, FlowNet, FlowNetConfig, GCAEConfig, ModuleLayout
from scbig.run import Run
from scbig.training import autoencoder
from scbig.training.autoencoder import Autoencoder
from scbig.training.checkpoint import load_params
from scbig.training.vocabulary import Vocabulary

__all__ = ["load_autoencoder", "load_flow", "load_modules", "new_autoencoder", "new_flow", "record", "save_summary"]

T = TypeVar("T")


def record(kind: type[T], settings: ConfigDict, **more: Any) -> T:
    """The frozen record of ``kind`` with the settings that it has a field for."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in names}, **more)


def new_autoencoder(
    settings: ConfigDict, modules: Modules, summary: np.ndarray | None, known: np.ndarray | None
) -> Autoencoder:
    """An untrained autoencoder over the modules; ``summary`` and ``known`` as in :class:`scbig.nn.GCAE`."""
    likelihood = settings.gcae.likelihood
    if likelihood not in ("gaussian", "negative_binomial"):
        raise InputError(f"--config.gcae.likelihood={likelihood}: there are gaussian, negative_binomial")
    blocks = ("induced", "transformer", "mlp")
    known_values = {"readout": ("mean", "attention", "pma", "concat"), "encoder": blocks, "decoder": blocks}
    for field, names in known_values.items():
        if settings.gcae[field] not in names:
            raise InputError(f"--config.gcae.{field}={settings.gcae[field]}: there are {', '.join(names)}")
    return autoencoder.new(record(GCAEConfig, settings.gcae), ModuleLayout.of(modules), settings.seed, summary, known)


def load_modules(run: Run, genes: Iterable[str]) -> Modules:
    """The run's modules, brought to the order of ``genes`` by name."""
    return Modules.load(run.path("modules.csv")).reorder(list(genes))


def load_autoencoder(run: Run, settings: ConfigDict, genes: Iterable[str]) -> Autoencoder:
    """The run's trained autoencoder, for expression with its columns in the order of ``genes``."""
    modules = load_modules(run, genes)
    file, summary, known = run.path("gcae/summary.npz"), None, None
    with np.load(file, allow_pickle=False) as stored:
        if stored["known"].size:
            summary, known = stored["summary"], stored["known"]
    return autoencoder.load(new_autoencoder(settings, modules, summary, known), run.path("gcae/params"))


def save_summary(run: Run, summary: np.ndarray | None, known: np.ndarray | None) -> None:
    """Keeps the module priors with the run, so that it can be read without the files they came from."""
    with atomic(run.path("gcae/summary.npz")) as temporary:
        empty = summary is None
        np.savez(
            temporary,
            summary=np.zeros((0, 0)) if empty else summary,
            known=np.zeros(0, bool) if empty else known,
        )


def new_flow(settings: ConfigDict, vocabulary: Vocabulary) -> FlowNet:
    """An untrained flow network for the vocabulary's sources and contexts."""
    network = FlowNet(
        record(FlowNetConfig, settings.velocity, latent=settings.gcae.latent),
        record(ConditionEncoderConfig, settings.condition, n_contexts=len(vocabulary.contexts)),
        vocabulary.dims,
        rngs=nnx.Rngs(params=rng.key(settings.seed, "flow init")),
    )
    if settings.condition.kernel:
        network.encoder.attach(vocabulary.bank())
    return network


def load_flow(run: Run, settings: ConfigDict, vocabulary: Vocabulary) -> FlowNet:
    """The run's trained flow network; what is not trained comes from the vocabulary."""
    graph, params, buffers = nnx.split(new_flow(settings, vocabulary), nnx.Param, ...)
    return nnx.merge(graph, load_params(run.path("flow/params"), params), buffers)
