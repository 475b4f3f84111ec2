"""The loop that both stages share: scan, evaluate, keep the best, checkpoint, stop, resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from scbig import devices, programs
from scbig.console import Progress
from scbig.errors import InputError
from scbig.training.checkpoint import Checkpoints
from scbig.training.log import MetricsLog
from scbig.training.state import TrainState, keep_best

__all__ = ["LoopConfig", "run"]

Advance = Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]
Evaluate = Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class LoopConfig:
    """How long, how often, and when to stop."""

    total: int  # updates at the most
    chunk: int  # updates in one compiled call; the host looks at nothing in between
    evaluate_every: int  # updates between evaluations, a multiple of chunk
    patience: int  # evaluations without a better score before stopping; 0: never
    checkpoint_every: int  # evaluations between checkpoints

    def __post_init__(self):
        if self.evaluate_every % self.chunk or self.total % self.evaluate_every:
            raise InputError(
                f"steps {self.total}, evaluate_every {self.evaluate_every} and chunk {self.chunk} must divide one another"
            )


def run(
    stage: str,
    state: TrainState,
    advance: Advance,
    evaluate: Evaluate,
    config: LoopConfig,
    folder: Path,
    log_folder: Path,
) -> TrainState:
    """Trains from the newest checkpoint in ``folder`` (or from ``state``) until the budget or the patience ends.

    Args:
        stage: name for the progress line and the log.
        state: the initial state; its buffers are consumed.
        advance: ``chunk`` updates in one compiled call; returns the state and metrics averaged over them, with ``loss``.
        evaluate: maps averaged parameters to a score (lower is better) and further metrics.
        config: the schedule.
        folder: where checkpoints go.
        log_folder: the run directory, for metrics.jsonl and TensorBoard.

    Returns:
        The state at the end; ``best`` holds the parameters to use.

    Raises:
        InputError: where the loss is not finite; the last good checkpoint stays.
    """
    checkpoints = Checkpoints(folder)
    record: dict[str, Any] = {"step": 0, "waited": 0, "stopped": False}
    found = checkpoints.restore(state)
    if found is not None:
        state, record = found
    # Bound to the devices from the start: what a step returns is, and an argument that is not bound like the
    # one before it would have the step compiled twice.
    state = devices.replicate(state)
    log = MetricsLog(log_folder, stage, record["step"])
    keep = jax.jit(keep_best, donate_argnums=0)
    evaluations = config.evaluate_every // config.chunk
    try:
        with Progress(stage, config.total, record["step"]) as progress:
            while record["step"] < config.total and not record["stopped"]:
                pending = []
                for _ in range(evaluations):
                    state, metrics = advance(state)
                    pending.append(metrics)
                    # Waiting for the chunk before keeps the bar honest while the device is never idle.
                    if len(pending) > 1:
                        jax.block_until_ready(pending[-2]["loss"])
                    progress.advance(config.chunk)
                _check_finite(stage, pending, record["step"], config.chunk)
                with programs.exact():
                    score, extra = evaluate(state.ema)
                before = float(state.best_score)
                state = keep(state, score)
                step, score = record["step"] + config.evaluate_every, float(score)
                waited = 0 if score < before else record["waited"] + 1
                stopped = bool(config.patience) and waited >= config.patience
                record = {"step": step, "waited": waited, "stopped": stopped}
                means = {k: sum(float(m[k]) for m in pending) / len(pending) for k in pending[0]}
                log.write(step, means | {"score": score} | {k: float(v) for k, v in extra.items()})
                progress.note(f"loss {means['loss']:.4f}  held-out {score:.4f}")
                if stopped or step >= config.total or (step // config.evaluate_every) % config.checkpoint_every == 0:
                    checkpoints.save(step, state, record)
    finally:
        log.close()
        checkpoints.close()
    return devices.local(state)


def _check_finite(stage, pending, step, chunk):
    for number, metrics in enumerate(pending, start=1):
        if not math.isfinite(float(metrics["loss"])):
            raise InputError(
                f"{stage}: the loss is not finite at about step {step + number * chunk}; the checkpoint before it is kept. "
                f"Lower the learning rate, or check the data for extreme values"
            )
