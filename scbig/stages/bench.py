"""``scbig bench``: what training and sampling cost on this machine, measured with the code that does them."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse as sp
from flax import nnx
from ml_collections import ConfigDict

from scbig import devices, predict, programs, rng, training
from scbig.console import say
from scbig.data.conditions import CONTROL
from scbig.data.store import Rows
from scbig.errors import InputError
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.run import Run
from scbig.stages.common import open_prepared
from scbig.training import assemble, autoencoder, feed, flow, gcae
from scbig.training.autoencoder import Autoencoder
from scbig.training.populations import build
from scbig.training.state import TrainState, apply_gradients, initial_state, make_optimizer
from scbig.training.vocabulary import Vocabulary, group_cells

__all__ = ["Sizes", "bench", "show"]

_MOST_CELLS = 50_000  # of stage 2, beyond which the step takes no longer
_DENSE = 256 << 20  # bytes of dense cells that stage 1 is measured on
_DENSITY = 0.15  # of simulated cells
_PATHWAYS, _MEMBERS = 200, 40
_DRAWN = 1_000_000  # cells that sampling is begun for
_DIMS = 50  # of an embedding of perturbations
_CONTROLS = 0.1  # share of cells


@dataclass(frozen=True)
class Sizes:
    """The size of a screen: cells (those to learn from among them), genes and conditions."""

    cells: int = 10_000
    genes: int = 2_000
    conditions: int = 100
    train_cells: int = 0  # 0: all

    def __post_init__(self):
        for name, least in (("cells", 100), ("genes", 10), ("conditions", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: at least {least} are needed to measure anything")
        if self.conditions > self.cells * (1 - _CONTROLS) // 2:
            raise InputError(f"--conditions {self.conditions}: more than two to a condition of {self.cells} cells")


def bench(
    settings: ConfigDict,
    sizes: Sizes,
    run: Run | None = None,
    quick: bool = False,
    operations: bool = False,
    seconds: float = 6.0,
) -> dict[str, Any]:
    """Times of steps, rates in cells per second, memory, and how long a run would take at the most.

    Args:
        settings: networks, batches and numbers of steps.
        sizes: of the screen; of the prepared one where ``run`` is given.
        run: a prepared run whose cells are used; cells at random otherwise.
        quick: fewer repetitions, and the alignment losses are left out.
        seconds: for each figure, at least; 1 at the most with ``quick``.
        operations: also the floating-point operations and the bytes of a step of stage 2, as the compiler counts them.

    Raises:
        InputError: where the run is not prepared.
    """
    seconds = min(seconds, 1.0) if quick else seconds
    with _screen(settings, sizes, run) as (rows, sizes):
        loader = feed.loader_rate(rows, batch=settings.pretrain.batch, seconds=seconds / 2, seed=settings.seed)
        most = max(settings.pretrain.batch, _DENSE // (4 * sizes.genes))
        cells = rows[: min(most, len(rows))]
    auto = _autoencoder(settings, sizes)
    report: dict[str, Any] = {"loader_cells_per_s": loader}
    with programs.precision(settings.precision) as found:
        report |= {"precision": found}
        report |= _stage_1(settings, auto, cells, seconds, quick)
        report |= _stage_2(settings, sizes, auto, seconds, quick, operations)
    report |= _sampling(settings, sizes, auto, cells, seconds)
    report |= {"peak_rss_gb": _peak(), "estimate_minutes": _estimate(settings, sizes, report)}
    return {**_about(), "quick": quick, "sizes": vars(sizes), **report}


def _lines(report: dict[str, Any]) -> list[list[str]]:
    """The report as a table for the console."""
    sizes, minutes = report["sizes"], report["estimate_minutes"]
    overhead = report["alignment_overhead"]
    rows = [
        ["measured", "here"],
        ["stage 1, step", f"{report['gcae_step_ms']:,.1f} ms"],
        ["stage 1, cells", f"{report['pretrain_cells_per_s']:,.0f} /s"],
        ["stage 1, loader alone", f"{report['loader_cells_per_s']:,.0f} /s"],
        ["stage 2, step without alignment", f"{report['flow_step_ms']:,.1f} ms"],
        ["stage 2, network alone", f"{report['network_floor_ms']:,.1f} ms"],
        ["stage 2, step over network", f"{report['flow_step_over_network_floor']:.2f}"],
        ["stage 2, alignment adds", "not measured" if overhead is None else f"{overhead:.0%}"],
        ["stage 2, cells", f"{report['train_cells_per_s']:,.0f} /s"],
        ["sampling, decoded cells", f"{report['sample_cells_per_s']:,.0f} /s"],
        ["peak memory", f"{report['peak_rss_gb']:.1f} GB"],
    ]
    size = f"{sizes['cells']:,} cells × {sizes['genes']:,} genes, {sizes['conditions']:,} conditions"
    rows += [[f"a run of {size}", "at the most"]]
    return rows + [[name, f"{value:,.1f} min"] for name, value in minutes.items()]


def _about() -> dict[str, Any]:
    device = jax.devices()[0]
    kind = {"platform": device.platform, "kind": device.device_kind, "number": devices.count()}
    return {"device": kind, "versions": {"python": platform.python_version(), "jax": jax.__version__}}


def _peak() -> float:
    """Most memory that this process ever held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**3 if sys.platform == "darwin" else 1024**2)


def _estimate(settings: ConfigDict, sizes: Sizes, report: dict[str, Any]) -> dict[str, float]:
    """Minutes of a run that never stops early; sampling of every condition."""
    slower = max(report["gcae_step_ms"] / 1e3, settings.pretrain.batch / report["loader_cells_per_s"])
    steps = settings.pretrain.epochs * max(1, round((sizes.train_cells or sizes.cells) / settings.pretrain.batch))
    drawn = sizes.conditions * settings.sample.n_cells
    controls = min(drawn, settings.sample.max_controls, round(sizes.cells * _CONTROLS))
    aligned = report["alignment_overhead"] or 0.0
    seconds = {
        "pretrain": steps * slower,
        "train": settings.flow.steps * report["flow_step_ms"] / 1e3 * (1.0 + aligned),
        "sample": drawn / report["sample_cells_per_s"] + controls / report["decode_cells_per_s"],
    }
    return {name: value / 60 for name, value in seconds.items()} | {"all": sum(seconds.values()) / 60}


# ------------------------------------------------------------------------------------------------ what is measured on


@contextmanager
def _screen(settings: ConfigDict, sizes: Sizes, run: Run | None) -> Iterator[tuple[Rows, Sizes]]:
    """Rows of the prepared screen and its size, or random ones."""
    if run is None:
        random = rng.generator(settings.seed, "bench cells")
        n = min(sizes.cells, _MOST_CELLS // 5)
        x = sp.random(n, sizes.genes, _DENSITY, "csr", np.float32, random_state=random)
        yield Rows.of(x), sizes
        return
    run.require(("prepare",), checked=False)
    with open_prepared(run) as (store, _, part):
        n_train, n_conditions = int((part == "train").sum()), len(set(store.obs["condition"].astype(str)) - {CONTROL})
        yield store.X, Sizes(store.n_obs, store.n_vars, n_conditions, n_train)


def _autoencoder(settings: ConfigDict, sizes: Sizes) -> Autoencoder:
    """An untrained autoencoder over modules of neighbouring genes."""
    parts = np.array_split(np.arange(sizes.genes), min(settings.modules.n_modules, sizes.genes))
    index = np.zeros((len(parts), len(parts[0])), np.int32)
    mask = np.zeros(index.shape, bool)
    for row, part in enumerate(parts):
        index[row, : len(part)], mask[row, : len(part)] = part, True
    return autoencoder.new(assemble.record(GCAEConfig, settings.gcae), ModuleLayout(index, mask), settings.seed)


def _vocabulary(sizes: Sizes, seed: int) -> tuple[Vocabulary, list[str]]:
    """Random embeddings of as many perturbations as there are conditions: singles, and as many pairs of them."""
    names = [f"P{number}" for number in range(sizes.conditions)]
    vectors = rng.generator(seed, "bench embeddings").normal(size=(len(names), _DIMS)).astype(np.float32)
    half = (sizes.conditions + 1) // 2
    pairs = [f"{names[k]}+{names[k + 1]}" for k in range(sizes.conditions - half)]
    return Vocabulary({"random": tuple(names)}, {"random": vectors}, {}, ("all",)), names[:half] + pairs


# ------------------------------------------------------------------------------------------------ measuring


def _rounds(seconds: float, least: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each call, in turn until the time is over but ``least`` times; each was called once before."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    begun = time.perf_counter()
    while len(next(iter(taken.values()))) < least or time.perf_counter() - begun < seconds * len(calls):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in taken.items()}


def _repeat(advance: Callable[[TrainState], tuple[TrainState, Any]], state: TrainState) -> Callable[[], Any]:
    """A call that carries its state on: the step consumes the one it is given."""
    # Bound to its devices, as every later one is; otherwise the second call would compile again.
    held = [devices.replicate(state)]

    def call() -> Any:
        held[0], metrics = advance(held[0])
        return metrics

    return call


def _stage_1(
    settings: ConfigDict, auto: Autoencoder, cells: sp.csr_matrix, seconds: float, quick: bool
) -> dict[str, float]:
    """The training step on cells that stay on the device; ``quick`` takes an eighth of the batch, and that by eight."""
    config = assemble.record(training.PretrainConfig, settings.pretrain)
    devices.check_divides(config.batch, "batch", "pretrain.batch")
    share = 8 if quick and config.batch % (8 * devices.count()) == 0 else 1
    measured = replace(config, batch=config.batch // share)
    optimizer = make_optimizer(config.learning_rate, 10_000, config.warmup, config.schedule, config.clip)
    x, places, everywhere = devices.replicate(
        (jnp.asarray(cells.toarray()), jnp.arange(cells.shape[0], dtype=jnp.int32), auto)
    )
    chunk = 1 if jax.default_backend() == "cpu" else 20
    options = {"optimizer": optimizer, "config": measured, "seed": settings.seed, "chunk": chunk}
    state = initial_state(everywhere.params, optimizer)
    call = _repeat(lambda state: gcae.advance(state, x, places, everywhere, **options), state)
    step = share * _rounds(seconds, 1, step=call)["step"] / chunk
    return {"gcae_step_ms": 1e3 * step, "pretrain_cells_per_s": config.batch / step}


def _stage_2(
    settings: ConfigDict, sizes: Sizes, auto: Autoencoder, seconds: float, quick: bool, operations: bool
) -> dict[str, Any]:
    """The training step beside the network alone, in turn."""
    chunk = 2 if jax.default_backend() == "cpu" else 50
    config = assemble.record(training.FlowConfig, settings.flow)
    config = replace(
        config, chunk=chunk, conditions=min(config.conditions, sizes.conditions),
        align_conditions=min(config.align_conditions, config.conditions, sizes.conditions),
        align_cells=min(config.align_cells, config.cells),
    )  # fmt: skip
    devices.check_divides(config.conditions, "batch", "flow.conditions")
    vocabulary, names = _vocabulary(sizes, settings.seed)
    graph, params, buffers = nnx.split(assemble.new_flow(settings, vocabulary), nnx.Param, ...)
    aligned = bool(config.lambda_corr or config.lambda_path) and not quick
    task = _flow_task(settings, sizes, auto, vocabulary, names, buffers, aligned)
    params, task = devices.replicate((params, task))
    optimizer = make_optimizer(config.learning_rate, 10_000, config.warmup, config.schedule, config.clip)
    # The mean-effect term needs a screen's weights; it is not measured.
    config = replace(config, lambda_gene=0.0)
    bare = replace(config, lambda_corr=0.0, lambda_path=0.0)

    def step(config: training.FlowConfig) -> Callable[[], Any]:
        options = {"graph": graph, "optimizer": optimizer, "config": config, "seed": settings.seed}
        return _repeat(lambda state: flow.advance(state, task, **options), initial_state(params, optimizer))

    calls = {"floor": _floor(params, task, graph, optimizer, config, settings.seed), "step": step(bare)}
    if aligned:
        calls["aligned"] = step(config)
    found = {name: value / chunk for name, value in _rounds(seconds, 5, **calls).items()}
    whole = found.get("aligned", found["step"])
    counted = {}
    if operations:
        used = replace(config if aligned else bare, chunk=1)
        options = {"graph": graph, "optimizer": optimizer, "config": used, "seed": settings.seed}
        cost = flow.advance.lower(initial_state(params, optimizer), task, **options).compile().cost_analysis()
        counted = {"flow_step_flop": cost["flops"], "flow_step_bytes": cost["bytes accessed"]}
    return counted | {
        "flow_step_ms": 1e3 * found["step"],
        "network_floor_ms": 1e3 * found["floor"],
        "flow_step_over_network_floor": found["step"] / found["floor"],
        "alignment_overhead": whole / found["step"] - 1.0 if aligned else None,
        "train_cells_per_s": config.conditions * config.cells / whole,
    }


@partial(jax.jit, static_argnames=("graph", "optimizer", "config", "seed"), donate_argnames="state")
def _network_only(state, buffers, batch, *, graph, optimizer, config, seed):
    """Forward, backward, clipping, Adam and the average, on one batch that stays where it is."""
    z_t, t, u, conditions = batch

    def body(carry, _):
        def loss(params):
            network = nnx.merge(graph, params, buffers)
            condition = network.encode(conditions, rng.key(seed, "flow encoder", carry.step))
            return jnp.mean(
                jnp.square(network.velocity(z_t, t, condition, rng.key(seed, "flow dropout", carry.step)) - u)
            )

        value, gradients = jax.value_and_grad(loss)(carry.params)
        return apply_gradients(carry, gradients, optimizer, config.ema), value

    return jax.lax.scan(body, state, length=config.chunk)


def _floor(params, task, graph, optimizer, config, seed) -> Callable[[], Any]:
    shape = (config.conditions, config.cells, task.populations.z.shape[1])
    z, u, t = jax.random.split(rng.key(seed, "bench batch"), 3)
    conditions = task.populations.conditions.take(jnp.arange(config.conditions))
    times = jax.random.uniform(t, (config.conditions, config.times or config.cells))
    batch = devices.replicate((jax.random.normal(z, shape), times, jax.random.normal(u, shape), conditions))
    options = {"graph": graph, "optimizer": optimizer, "config": config, "seed": seed}
    return _repeat(lambda state: _network_only(state, task.buffers, batch, **options), initial_state(params, optimizer))


def _flow_task(
    settings: ConfigDict,
    sizes: Sizes,
    auto: Autoencoder,
    vocabulary: Vocabulary,
    names: list[str],
    buffers: Any,
    aligned: bool,
) -> training.FlowTask:
    """Random latents in as many groups as there are conditions; what a step costs does not depend on their values."""
    random, n = rng.generator(settings.seed, "bench latents"), min(sizes.cells, max(_MOST_CELLS, 4 * sizes.conditions))
    n_controls = max(1, round(n * _CONTROLS))
    labels = np.array([CONTROL] * n_controls + [names[k % len(names)] for k in range(n - n_controls)])
    obs = pd.DataFrame({"condition": labels, "context": "all", "batch": "all"})
    number, groups = group_cells(obs)
    z = random.normal(size=(n, settings.gcae.latent)).astype(np.float32)
    populations, _ = build(
        z, obs, np.ones(n, bool), number, groups, vocabulary.conditions(groups),
        by_batch=False, coupling=settings.flow.coupling, epsilon=settings.flow.epsilon, seed=settings.seed,
    )  # fmt: skip
    displacement = jnp.zeros((len(groups), z.shape[1]))
    alignment = _alignment(sizes, auto, len(groups), n, random) if aligned else None
    zeros = jnp.zeros((sizes.genes, 1)), jnp.zeros(sizes.genes)
    return training.FlowTask(buffers, populations, auto, alignment, None, *zeros, displacement)


def _alignment(sizes: Sizes, auto: Autoencoder, n_groups: int, n_cells: int, random: np.random.Generator):
    network = auto.network()
    mask, index = np.asarray(network.mask[...]), np.asarray(network.index[...])
    averaging = np.zeros((len(mask), sizes.genes), np.float32)
    averaging[np.nonzero(mask)[0], index[mask]] = 1.0
    averaging /= averaging.sum(axis=1, keepdims=True)
    pathways = np.zeros((_PATHWAYS, sizes.genes), np.float32)
    members = random.integers(0, sizes.genes, (_PATHWAYS, _MEMBERS))
    pathways[np.arange(_PATHWAYS)[:, None], members] = 1.0
    pathways /= pathways.sum(axis=1, keepdims=True)
    activity = random.random((n_cells, _PATHWAYS), np.float32)
    target = np.zeros((n_groups, len(mask), len(mask)), np.float32)
    return training.Alignment(*map(jnp.asarray, (target, averaging, pathways, activity)))


def _sampling(
    settings: ConfigDict, sizes: Sizes, auto: Autoencoder, cells: sp.csr_matrix, seconds: float
) -> dict[str, float]:
    """Cells per second of the predictor, solver and decoder together, and of the decoder that prepares its controls."""
    vocabulary, names = _vocabulary(sizes, settings.seed)
    graph, params = nnx.split(assemble.new_flow(settings, vocabulary))
    x0 = cells[: min(cells.shape[0], 256)]
    n = x0.shape[0]
    controls = pd.DataFrame({"context": "all", "batch": "all"}, index=[f"c{k}" for k in range(n)])
    z0 = rng.generator(settings.seed, "bench controls").normal(size=(n, settings.gcae.latent)).astype(np.float32)
    var = pd.DataFrame(index=[f"g{k}" for k in range(sizes.genes)])
    predictor = predict.Predictor("bench", settings, auto, graph, params, vocabulary, controls, z0, x0, var, {})
    decode = _rounds(0.0, 1, all=lambda: training.decode_all(auto, np.resize(z0, (512, z0.shape[1]))))["all"]
    n_cells = settings.sample.n_cells
    # More than any machine samples in the time; what is not reached is not computed.
    chunks = predictor.population(names[: _DRAWN // n_cells + 1], max(n_cells, _DRAWN // len(names))).chunks()
    for _ in range(2):  # compiled with the first, and the second was waiting
        next(chunks)
    begun, done = time.perf_counter(), 0
    for chunk in chunks:
        done += len(chunk.x)
        if time.perf_counter() - begun > seconds:
            break
    return {"sample_cells_per_s": done / (time.perf_counter() - begun), "decode_cells_per_s": 512 / decode}


def show(report: dict[str, Any]) -> None:
    """Prints the table and what it leaves out."""
    from scbig.console import table

    table(_lines(report))
    say("times of a run are upper limits: training stops early once held-out cells are no longer met better")
