"""Our side of a comparison: the flow of a finished run, trained anew step by step and sampled, on request.

What is measured is what ``scbig run`` executes: the stage builds its training task and hands over the step that its
loop would call; both are taken at the place where they are passed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.peers.worker import serve
from scbig import config, stages, training
from scbig.run import Run
from scbig.training import loop
from scbig.training.vocabulary import Group, Vocabulary

__all__ = ["Ours"]


class _Taken(Exception):
    """Carries what a function was about to be called with."""


def _take(owner: Any, name: str, caller: Callable, *given: Any) -> tuple:
    """The arguments with which ``caller`` calls ``owner.name``."""

    def keep(*arguments, **_):
        raise _Taken(arguments)

    with mock.patch.object(owner, name, keep):
        try:
            caller(*given)
        except _Taken as taken:
            return taken.args[0]
    raise RuntimeError(f"{caller.__name__} did not call {name}")


@partial(jax.jit, static_argnames=("graph", "steps", "solver", "decode"))
def _sample(params, buffers, auto, conditions, z0, *, graph, steps, solver, decode):
    network = nnx.merge(graph, params, buffers)
    source = jnp.broadcast_to(z0, (conditions.context.shape[0], *z0.shape))
    z = training.sample_latents(network, network.encode(conditions), source, steps, solver)
    return (z, jax.lax.map(auto.decode, z)) if decode else (z,)


class Ours:
    """One model, from nothing to trained; the methods are the requests."""

    def load(self, run: str, overrides: list[str]) -> dict[str, Any]:
        """The training task of a run, with some settings changed."""
        self.run = Run(run)
        self.settings = config.override(config.read_json(self.run.path("config.json")), overrides)
        self.network, self.task, self.config = _take(training, "train_flow", stages.train, self.run, self.settings, {})[
            :3
        ]
        self.vocabulary = Vocabulary.load(self.run.path("flow/conditions.npz"))
        self.compiled: set[tuple] = set()
        parts = {"network": self.network, "velocity": self.network.velocity}
        return {
            name: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))) for name, part in parts.items()
        }

    def start(self, seed: int = 0, **changes: Any) -> dict[str, Any]:
        """Back to the untrained network; ``seconds`` is what precedes the first step: the fit of the shift.

        ``changes`` are fields of the training's settings; the first step after other ones compiles again.
        """
        settings, nowhere = replace(self.config, **changes), Path("none")
        begun = time.perf_counter()
        taken = _take(loop, "run", training.train_flow, self.network, self.task, settings, seed, nowhere, nowhere)
        state, self.advance, schedule = taken[1], taken[2], taken[4]
        # Bound to the device, as the loop does it: the step would be compiled twice otherwise.
        self.state = jax.block_until_ready(jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), state))
        return {"seconds": time.perf_counter() - begun, "chunk": schedule.chunk, "total": schedule.total}

    def train(self, calls: int) -> dict[str, Any]:
        """Goes on for some calls of the compiled step, ``chunk`` updates each; seconds of each call."""
        seconds = []
        for _ in range(calls):
            begun = time.perf_counter()
            self.state, _ = self.advance(self.state)
            jax.block_until_ready(self.state.params)
            seconds.append(time.perf_counter() - begun)
        return {"seconds": seconds}

    def sample(
        self, conditions: list[str], context: str, z0: str, out: str, which: str = "ema", decode: bool = False
    ) -> dict[str, Any]:
        """Carries the control latents in ``z0`` to each condition; writes ``z`` (and ``x`` if decoded) to ``out``.

        The time is that of the compiled program, its results brought to the host.
        """
        source = np.load(z0)
        graph, _, buffers = nnx.split(self.network, nnx.Param, ...)
        given = self.vocabulary.conditions([Group(name, context) for name in conditions])
        options = {"steps": self.config.solver_steps, "solver": self.config.solver, "decode": decode, "graph": graph}
        kind = (len(conditions), source.shape, decode)
        for _ in range(1 if kind in self.compiled else 2):
            begun = time.perf_counter()
            found = _sample(getattr(self.state, which), buffers, self.task.auto, given, source, **options)
            found = [np.asarray(array) for array in found]
            seconds = time.perf_counter() - begun
        self.compiled.add(kind)
        np.savez(out, **dict(zip(("z", "x"), found, strict=False)))
        return {"seconds": seconds, "cells": len(conditions) * len(source)}


if __name__ == "__main__":
    model = Ours()
    serve({name: getattr(model, name) for name in ("load", "start", "train", "sample")})
