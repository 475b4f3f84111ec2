"""CellFlow's side of a comparison; runs in CellFlow's environment, where scbig is not installed.

Reads a run directory's latents (``latents.zarr``: latents, condition, context and part of every cell) and a file of
embeddings, trains CellFlow on the training part through its public interface, and carries control latents to
conditions, which our decoder then decodes.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from cellflow.data import TrainSampler
from cellflow.model import CellFlow
from cellflow.utils import match_linear

from benchmarks.peers.worker import serve

__all__ = ["Adapter"]

_NOBODY = "none"  # fills up combinations; CellFlow wants a vector for it too, and masks zeros


class Adapter:
    """One model, from nothing to trained; the methods are the requests."""

    def load(self, run: str, embeddings: str) -> dict[str, Any]:
        """Training cells and embeddings, in the form that CellFlow prepares its data from."""
        cells = ad.read_zarr(Path(run, "latents.zarr"))
        cells = cells[(cells.obs["part"] == "train").to_numpy()]
        names = cells.obs["condition"].astype(str)
        tokens = [[] if name == "control" else name.split("+") for name in names]
        self.size = max(map(len, tokens))
        table = _columns(tokens, self.size, cells.obs["context"].astype(str), cells.obs_names)
        table["control"] = (names == "control").to_numpy()
        with np.load(embeddings) as file:
            vectors = dict(zip(file["genes"].tolist(), file["vectors"].astype(np.float32), strict=True))
        self.contexts = sorted(table["context"].unique())
        several = len(self.contexts) > 1
        self.adata = ad.AnnData(np.zeros((len(table), 1), np.float32), obs=table.astype({"context": "category"}))
        self.adata.obsm["latent"] = np.asarray(cells.X, np.float32)
        self.adata.uns["genes"] = vectors | {_NOBODY: np.zeros_like(next(iter(vectors.values())))}
        self.adata.uns["contexts"] = dict(zip(self.contexts, np.eye(len(self.contexts), dtype=np.float32), strict=True))
        self.model = CellFlow(self.adata, solver="otfm")
        self.model.prepare_data(
            sample_rep="latent",
            control_key="control",
            perturbation_covariates={"gene": tuple(f"gene_{i}" for i in range(self.size))},
            perturbation_covariate_reps={"gene": "genes"},
            sample_covariates=["context"] if several else None,
            sample_covariate_reps={"context": "contexts"} if several else None,
            split_covariates=["context"] if several else None,
        )
        return {"cells": len(table), "conditions": int(self.model.train_data.n_perturbations)}

    def start(
        self,
        batch: int,
        hidden: list[int],
        time_encoder: list[int],
        decoder: list[int],
        embedding: int = 256,
        rate: float = 1e-3,
        epsilon: float = 1.0,
        noise: float = 0.0,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> dict[str, Any]:
        """An untrained network of the given widths. Plain Adam, its own default pooling and coupling."""
        self.model.prepare_model(
            condition_embedding_dim=embedding,
            cond_output_dropout=dropout,
            hidden_dims=tuple(hidden),
            time_encoder_dims=tuple(time_encoder),
            decoder_dims=tuple(decoder),
            # Their defaults for these three are dataclass fields, which their own code takes for "no layers".
            layers_before_pool=[],
            layers_after_pool=[],
            conditioning_kwargs={},
            probability_path={"constant_noise": noise},
            match_fn=partial(match_linear, epsilon=epsilon, scale_cost="mean"),
            optimizer=optax.adam(rate),
            seed=seed,
        )
        self.sampler = TrainSampler(data=self.model.train_data, batch_size=batch)
        # As in their trainer, except that several calls go on instead of drawing the same batches again.
        self.key, self.draws = jax.random.PRNGKey(seed), np.random.default_rng(seed)
        # Its modules cannot be hashed, so the network is bound instead of being an argument.
        self.heun = jax.jit(partial(_carry, self.model.solver.vf), static_argnames="steps")
        self.compiled: set[tuple] = set()
        count = sum(leaf.size for leaf in jax.tree.leaves(self.model.solver.vf_state.params))
        return {"network": count}

    def train(self, steps: int) -> dict[str, Any]:
        """Goes on for some steps; seconds of each. The very first one compiles."""
        solver, seconds = self.model.solver, []
        for _ in range(steps):
            begun = time.perf_counter()
            self.key, key = jax.random.split(self.key)
            float(solver.step_fn(key, self.sampler.sample(self.draws)))
            seconds.append(time.perf_counter() - begun)
        jax.block_until_ready(solver.vf_state.params)
        solver.is_trained = True
        return {"seconds": seconds}

    def sample(
        self, conditions: list[str], context: str, z0: str, out: str, solver: str = "heun", steps: int = 10
    ) -> dict[str, Any]:
        """Carries the control latents in the file ``z0`` to each condition; writes ``z`` to ``out``.

        ``solver`` is ``default`` (CellFlow's own prediction, adaptive for each cell) or ``heun``: its network under a
        solver of fixed steps, all conditions and cells in one compiled program. The time is without compilation.
        """
        source, given = np.load(z0), self._conditions(conditions, context)
        kind = (len(conditions), source.shape, solver, steps)
        for _ in range(1 if kind in self.compiled else 2):
            begun = time.perf_counter()
            if solver == "default":
                pairs = {name: {key: value[[i]] for key, value in given.items()} for i, name in enumerate(conditions)}
                found = self.model.solver.predict(dict.fromkeys(conditions, source), pairs)
                z = np.stack([found[name] for name in conditions])
            else:
                z = np.asarray(self.heun(self.model.solver.vf_state_inference.params, given, source, steps=steps))
            seconds = time.perf_counter() - begun
        self.compiled.add(kind)
        np.savez(out, z=z)
        return {"seconds": seconds, "cells": len(conditions) * len(source)}

    def _conditions(self, names: list[str], context: str) -> dict[str, np.ndarray]:
        """CellFlow's own encoding of the conditions, ``[conditions, set, dims]``."""
        tokens = [name.split("+") for name in names]
        table = _columns(tokens, self.size, pd.Series([context] * len(names)), [str(i) for i in range(len(names))])
        table["control"], table["name"] = False, names
        data = self.model.data_manager.get_condition_data(table, dict(self.adata.uns), condition_id_key="name")
        place = {name: row for row, name in data.perturbation_idx_to_id.items()}
        order = [place[name] for name in names]
        return {key: np.asarray(value)[order] for key, value in data.condition_data.items()}


def _columns(tokens: list[list[str]], size: int, context: pd.Series, index: Any) -> pd.DataFrame:
    """One column for each place in a combination."""
    filled = [sorted(each) + [_NOBODY] * (size - len(each)) for each in tokens]
    table = pd.DataFrame(filled, columns=[f"gene_{i}" for i in range(size)], index=index).astype("category")
    table["context"] = context.to_numpy()
    return table


def _carry(network, params, conditions, source, *, steps):
    """Heun's method with the network of CellFlow, over all cells of a condition at once and over conditions."""
    noise = jnp.zeros((1, network.condition_embedding_dim))

    def one(condition):
        condition = jax.tree.map(lambda leaf: leaf[None], condition)

        def velocity(x, t):
            times = jnp.full((x.shape[0], 1), t)
            return network.apply({"params": params}, times, x, condition, noise, train=False)[0]

        def step(x, t):
            first = velocity(x, t)
            second = velocity(x + first / steps, t + 1.0 / steps)
            return x + (first + second) / (2 * steps), None

        return jax.lax.scan(step, source, jnp.arange(steps) / steps)[0]

    return jax.vmap(one)(conditions)


if __name__ == "__main__":
    adapter = Adapter()
    serve({name: getattr(adapter, name) for name in ("load", "start", "train", "sample")})
