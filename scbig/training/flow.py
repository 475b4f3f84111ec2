"""Stage 2: the flow from control to perturbed latents, with the alignment losses in every step's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from scbig import anchor, devices, flow, losses, rng
from scbig.errors import InputError
from scbig.nn.condition import Encoded
from scbig.nn.velocity import FlowNet
from scbig.training import loop
from scbig.training.autoencoder import Autoencoder
from scbig.training.populations import Populations, Watched, displacements, draw
from scbig.training.state import TrainState, apply_gradients, initial_state, make_optimizer

__all__ = ["Alignment", "FlowConfig", "FlowTask", "evidence", "sample_latents", "train_flow"]

_SHIFT_RATE = 1e-3  # first learning rate of the shift's own fit


@dataclass(frozen=True)
class FlowConfig:
    """How the flow is trained. Noise and epsilon are in units of the standardised latent."""

    steps: int = 5000
    conditions: int = 32  # conditions in a batch
    cells: int = 32  # cells of each
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.999
    sigma: float = 0.05  # noise on the path
    time: str = "uniform"  # uniform | logit_normal
    times: int = 4  # different times among a condition's cells in a step; 0: one for each cell
    coupling: str = "sinkhorn"  # independent | sinkhorn | exact | precomputed
    epsilon: float = 0.05  # of the coupling, as a share of the mean cost
    shift: float = 1.0  # weight of the regression that fits the additive shift; an anchor stands in its place
    shift_steps: int = 500  # updates of that regression alone, on all conditions at once, before the flow starts
    lambda_corr: float = 0.1
    lambda_path: float = 0.1
    lambda_gene: float = 0.0  # of the mean effect, genes that the condition moves counting more as training goes on
    align_conditions: int = 1  # conditions of the batch that enter the alignment losses
    align_cells: int = 32
    align_every: int = 2  # steps from one evaluation of the alignment losses to the next
    solver: str = "heun"
    solver_steps: int = 10
    residual: bool = True  # judge cells with what the decoder cannot tell of the control they started from
    evaluate_every: int = 250
    chunk: int = 50
    patience: int = 8
    checkpoint_every: int = 2


class Alignment(NamedTuple):
    """What the alignment losses compare with; a pytree of arrays.

    Attributes:
        target: shrunk module correlation of each group's reconstructed cells, ``[groups, modules, modules]``.
        averaging: module-mean weights, ``[modules, genes]``.
        pathways: row-normalised membership, ``[pathways, genes]``.
        activity: pathway activity of training cells, ``[kept, pathways]``.
        row: which of them stands for each cell of ``Populations.z``, ``[cells]``; None where they are these cells.
        mean: mean of each group's reconstructed cells, ``[groups, genes]``; None where no loss asks for it.
        weight: of genes by how far each group's effect stands out of its noise, of mean 1, ``[groups, genes]``.
    """

    target: Float[Array, "groups modules modules"]
    averaging: Float[Array, "modules genes"]
    pathways: Float[Array, "pathways genes"]
    activity: Float[Array, "kept pathways"]
    row: Int[Array, " cells"] | None = None
    mean: Float[Array, "groups genes"] | None = None
    weight: Float[Array, "groups genes"] | None = None


class FlowTask(NamedTuple):
    """Everything that a training step reads; a pytree, passed as an argument so that nothing is baked into the program.

    Attributes:
        buffers: the network's fixed variables (none today).
        populations: training cells.
        auto: the frozen autoencoder.
        alignment: targets of the alignment losses; None where both weights are zero.
        watched: held-out cells to stop on.
        loadings: the evaluation space, ``[genes, dims]``.
        origin: its origin in expression, ``[genes]``.
        displacement: mean displacement of every group from its controls, which the shift is fitted to; set by
            ``train_flow``.
        left: what the decoder cannot tell of the watched controls, in the evaluation space; set by ``train_flow``.
    """

    buffers: Any
    populations: Populations
    auto: Autoencoder
    alignment: Alignment | None
    watched: Watched
    loadings: Float[Array, "genes dims"]
    origin: Float[Array, " genes"]
    displacement: Float[Array, "groups latent"] | None = None
    left: Float[Array, "watched cells dims"] | None = None


def _alignment_losses(endpoints, task, config, groups, targets, step):
    """The alignment terms of some cells of each of some groups, weighted and added up; and each alone."""
    n, m = endpoints.shape[:2]
    decoded = task.auto.decode(endpoints.reshape(n * m, -1)).reshape(n, m, -1)
    align = task.alignment
    corr = path = jnp.zeros(())
    if config.lambda_corr:
        target = align.target[groups]
        corr = jnp.mean(jax.vmap(losses.cluster_correlation, (0, 0, None))(decoded, target, align.averaging))
    if config.lambda_path:
        real = align.activity[targets if align.row is None else align.row[targets]]
        path = jnp.mean(jax.vmap(losses.pathway_transport, (0, 0, None))(decoded, real, align.pathways))
    total = config.lambda_corr * corr + config.lambda_path * path
    if not config.lambda_gene:
        return total, (corr, path)
    weights = losses.mixed_weights(align.weight[groups], losses.scheduled_share(step / config.steps))
    gene = jnp.mean(jax.vmap(losses.mean_effect_loss)(decoded, align.mean[groups], weights))
    return total + config.lambda_gene * gene, (corr, path, gene)


def _aligned(ẑ1, task, config, groups, targets, step):
    """The alignment part of the objective, on the first conditions and cells of the batch in every so many steps."""
    n, m = config.align_conditions, config.align_cells
    endpoints, every = ẑ1[:n, :m], config.align_every

    names = ("corr", "path", *(("gene",) if config.lambda_gene else ()))

    def evaluate(endpoints):
        valued = jax.value_and_grad(_alignment_losses, has_aux=True)
        return valued(endpoints, task, config, groups[:n], targets[:n, :m], step)

    def skip(endpoints):
        return (jnp.zeros(()), (jnp.zeros(()),) * len(names)), jnp.zeros_like(endpoints)

    # The gradient is taken inside: through the condition, steps without it would fill the decoder's activations with
    # zeros. The steps with it stand for those without: the objective is the same on average.
    fixed = jax.lax.stop_gradient(endpoints)
    (value, parts), slope = jax.lax.cond(step % every == 0, evaluate, skip, fixed)
    told = {name: every * part for name, part in zip(names, parts, strict=True)}
    return every * (value + jnp.sum(slope * (endpoints - fixed))), told


def _objective(params, graph, task, config, seed, step):
    """The full objective of one step: flow matching, the shift's regression and the two alignment terms."""
    network: FlowNet = nnx.merge(graph, params, task.buffers)
    batch_key, couple_key, time_key, noise_key, encoder_key, dropout_key = (
        rng.key(seed, f"flow {purpose}", step) for purpose in ("batch", "couple", "time", "noise", "encoder", "dropout")
    )
    batch = draw(batch_key, task.populations, config.conditions, config.cells, config.coupling)
    groups, sources, targets = devices.spread(batch)
    z0, z1 = task.populations.z[sources], task.populations.z[targets]
    partners, perplexity = flow.couple(couple_key, z0, z1, config.coupling, config.epsilon)
    targets = jnp.take_along_axis(targets, partners, axis=1)
    z1 = jnp.take_along_axis(z1, partners[..., None], axis=1)
    t = flow.sample_time(time_key, config.conditions, config.times or config.cells, config.time)
    each = jnp.tile(t, (1, config.cells // t.shape[1]))[..., None]
    z_t, u = flow.interpolate(z0, z1, each, jax.random.normal(noise_key, z0.shape), config.sigma)
    condition = network.encode(task.populations.conditions.take(groups), encoder_key)
    v = network.velocity(z_t, t, condition, dropout_key)
    matching = jnp.mean(jnp.square(v - u))
    shift = jnp.mean(jnp.square(network.velocity.shift(condition) - task.displacement[groups]))
    loss = matching + config.shift * shift
    metrics = {"flow": matching, "shift": shift, "perplexity": perplexity}
    if config.lambda_corr or config.lambda_path or config.lambda_gene:
        aligned, parts = _aligned(flow.endpoint(z_t, each, v), task, config, groups, targets, step)
        loss, metrics = loss + aligned, metrics | parts
    return loss, metrics | {"loss": loss}


@partial(jax.jit, static_argnames=("graph", "config", "seed"))
def _settle(params, task, *, graph, config, seed):
    """Fits the shift to all conditions at once, so that the flow starts in the shifted frame.

    Otherwise the shift settles while the flow is trained, and stopping on the distribution can come before that.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(_SHIFT_RATE, config.shift_steps))

    def loss(params, step):
        network: FlowNet = nnx.merge(graph, params, task.buffers)
        condition = network.encode(task.populations.conditions, rng.key(seed, "flow settle", step))
        return jnp.mean(jnp.square(network.velocity.shift(condition) - task.displacement))

    def body(carry, step):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, step), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, optimizer.init(params)), jnp.arange(config.shift_steps))[0][0]


@partial(jax.jit, static_argnames=("graph", "optimizer", "config", "seed"), donate_argnames="state")
def advance(
    state: TrainState,
    task: FlowTask,
    *,
    graph: Any,
    optimizer: optax.GradientTransformation,
    config: FlowConfig,
    seed: int,
) -> tuple[TrainState, dict[str, Array]]:
    """``config.chunk`` updates in one compiled call, with the metrics' means over them; the state is consumed.

    Batches are drawn, paired, moved and learned from on the device; the host looks at nothing in between.
    """

    def body(carry, _):
        gradient = jax.grad(_objective, has_aux=True)
        gradients, metrics = gradient(carry.params, graph, task, config, seed, carry.step)
        metrics["gradient_norm"] = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
        return apply_gradients(carry, gradients, optimizer, config.ema), metrics

    state, metrics = jax.lax.scan(body, state, length=config.chunk)
    return state, jax.tree.map(jnp.mean, metrics)


def sample_latents(
    network: FlowNet,
    condition: Encoded,
    z0: Float[Array, "conditions cells latent"],
    steps: int,
    solver: str,
    guidance: float = 1.0,
) -> Float[Array, "conditions cells latent"]:
    """Carries control latents to each condition, whose encoding is computed once."""

    def velocity(z, t):
        return network.guided(z, jnp.broadcast_to(t, (z.shape[0], 1)), condition, guidance)

    return flow.integrate(velocity, z0, steps, solver)


def _project(task, z):
    """Decoded cells of each group in the evaluation space."""
    return jax.lax.map(lambda cells: (task.auto.decode(cells) - task.origin[None]) @ task.loadings, z)


@jax.jit
def _left(task):
    return task.watched.start - _project(task, task.watched.z0)


def _decoded(params, task, graph, config):
    """Decoded cells sampled for each watched group, in the evaluation space."""
    network = nnx.merge(graph, params, task.buffers)
    condition = network.encode(task.watched.conditions)
    return _project(task, sample_latents(network, condition, task.watched.z0, config.solver_steps, config.solver))


@partial(jax.jit, static_argnames=("graph", "config"))
def _held_out_distance(params, task, *, graph, config):
    """Distance of sampled to held-out cells as a share of control's, over the watched groups, and agreement of effects."""
    watched = task.watched
    predicted = _decoded(params, task, graph, config) + (task.left if config.residual else 0.0)
    weight = watched.real_weight
    distance = jax.vmap(lambda x, y, w: losses.energy_distance(x, y, None, w))
    ours, controls = (
        distance(predicted, watched.real, weight),
        distance(watched.control, watched.real, weight),
    )
    share = jnp.sum(weight, 1, keepdims=True)
    real_mean = jnp.sum(watched.real * weight[..., None], 1) / share
    base = jnp.mean(watched.control, 1)
    cosine = _cosine(jnp.mean(predicted, 1) - base, real_mean - base)
    # The floor keeps conditions that hardly differ from control from ruling the score by their noise.
    relative = ours / (jnp.maximum(controls, 0.0) + jnp.mean(jnp.maximum(controls, 0.0)))
    metrics = {"e_distance": ours @ watched.share, "effect_cosine": cosine @ watched.share}
    metrics["e_distance_share"] = (ours @ watched.share) / (controls @ watched.share)
    return relative @ watched.share, metrics


@partial(jax.jit, static_argnames=("graph", "config"))
def _moves(params, task, *, graph, config):
    return _decoded(params, task, graph, config) - _project(task, task.watched.z0)


def evidence(
    network: FlowNet, params: Any, task: FlowTask, config: FlowConfig, kinds: Sequence[str]
) -> list[anchor.Evidence]:
    """What the flow adds to the anchor for every watched group, beside the group's held-out cells.

    Args:
        network: the network's structure.
        params: its trained parameters.
        task: what it was trained on.
        config: the solver.
        kinds: what was known of each group when the anchor predicted it, by ``Watched.place``.
    """
    graph, _, buffers = nnx.split(network, nnx.Param, ...)
    task = task._replace(buffers=buffers)
    start, watched = np.asarray(task.watched.start), task.watched
    moved = start + np.asarray(_moves(params, task, graph=graph, config=config))
    real, weight = np.asarray(watched.real), np.asarray(watched.real_weight) > 0
    groups = zip(start, moved, real, weight, np.asarray(watched.place), np.asarray(watched.trained), strict=True)
    return [anchor.Evidence(s, m, r[w], kinds[int(p)], bool(t)) for s, m, r, w, p, t in groups]


def _cosine(x, y):
    scale = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.sum(x * y, axis=-1) / jnp.maximum(scale, 1e-12)


def train_flow(
    network: FlowNet, task: FlowTask, config: FlowConfig, seed: int, folder: Path, log_folder: Path
) -> TrainState:
    """Trains until the distribution of cells sampled for the training conditions stops coming closer to held-out ones.

    The loss goes on falling long after that on small screens, so it does not decide.

    Args:
        network: the untrained network.
        task: what the steps read; ``task.buffers`` is set here.
        config: the training's settings.
        seed: the run's seed.
        folder: for checkpoints.
        log_folder: the run directory.

    Raises:
        InputError: where cells cannot share times evenly.
    """
    if config.times and config.cells % config.times:
        raise InputError(
            f"{config.cells} cells of a condition cannot share {config.times} times evenly; give --config.flow.cells a "
            "multiple of --config.flow.times"
        )
    graph, params, buffers = nnx.split(network, nnx.Param, ...)
    task = task._replace(buffers=buffers, displacement=jnp.asarray(displacements(task.populations)))
    if config.residual:
        task = task._replace(left=_left(task))
    every = -(-config.evaluate_every // config.chunk) * config.chunk
    total = max(1, -(-config.steps // every)) * every
    config = replace(
        config,
        conditions=min(config.conditions, max(task.populations.start.shape[0], 1)),
        align_conditions=min(config.align_conditions, config.conditions, task.populations.start.shape[0]),
        align_cells=min(config.align_cells, config.cells),
    )
    optimizer = make_optimizer(
        config.learning_rate, total, min(config.warmup, total // 10), config.schedule, config.clip
    )

    devices.check_divides(config.conditions, "batch", "flow.conditions")
    # The same arrays on every device; each works on its share of a batch's conditions.
    params, task = devices.replicate((params, task))

    def forward(state):
        return advance(state, task, graph=graph, optimizer=optimizer, config=config, seed=seed)

    def evaluate(params):
        return _held_out_distance(params, task, graph=graph, config=config)

    if config.shift and config.shift_steps:
        params = _settle(params, task, graph=graph, config=config, seed=seed)
    schedule = loop.LoopConfig(total, config.chunk, every, config.patience, config.checkpoint_every)
    return loop.run("train", initial_state(params, optimizer), forward, evaluate, schedule, folder, log_folder)
