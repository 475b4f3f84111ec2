"""What feeding stage 1 costs: cells on the device and cells streamed from disk, against a loop over one resident batch.

python -m benchmarks.stream
python -m benchmarks.stream --cells 100000 --width 64 --rounds 7
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.common import peak_gigabytes, write
from scbig.data.store import Rows, open_store
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.training import autoencoder, feed, gcae
from scbig.training.state import initial_state, make_optimizer

_BLOCK = 10_000


def make_screen(path: Path, n_cells: int, n_genes: int, density: float) -> None:
    """A sparse matrix of log-expression as ``scbig prepare`` leaves it, written block by block."""
    random = np.random.default_rng(0)
    names = pd.DataFrame(index=pd.Index([f"g{i}" for i in range(n_genes)]))
    for start in range(0, n_cells, _BLOCK):
        size = min(_BLOCK, n_cells - start)
        # Some cells are far deeper than others, as real ones are.
        depth = np.clip(density * random.lognormal(-0.1, 0.4, size), 0.0, 0.9)
        each = random.binomial(n_genes, depth)
        indices = np.concatenate([np.sort(random.choice(n_genes, n, replace=False)) for n in each]).astype(np.int32)
        indptr = np.concatenate([[0], np.cumsum(each)])
        data = np.log1p(random.exponential(2.0, len(indices))).astype(np.float32)
        block = sp.csr_matrix((data, indices, indptr), shape=(size, n_genes))
        if start == 0:
            obs = pd.DataFrame(index=pd.Index([str(i) for i in range(size)]))
            ad.AnnData(block, obs=obs, var=names).write_h5ad(path, compression="lzf")
        else:
            with h5py.File(path, "r+") as file:
                ad.io.sparse_dataset(file["X"]).append(block)
    with h5py.File(path, "r+") as file:
        del file["obs"]
        ad.io.write_elem(file, "obs", pd.DataFrame(index=pd.Index([str(i) for i in range(n_cells)])))


@partial(jax.jit, static_argnames=("optimizer", "config", "chunk"), donate_argnames="state")
def _one_batch(state, cells, auto, *, optimizer, config, chunk):
    """The floor: the same updates on one batch that is there already."""

    def body(carry, _):
        return gcae._update(carry, cells - auto.gene_mean[None], None, auto, optimizer, config, 0)

    state, metrics = jax.lax.scan(body, state, length=chunk)
    return state, jax.tree.map(jnp.mean, metrics)


def _modes(rows: Rows, auto, optimizer, config, chunk, supply):
    """By name, a chunk of updates."""
    fixed = {"optimizer": optimizer, "config": config}
    on_device, places = feed.resident(rows), jnp.arange(len(rows), dtype=jnp.int32)
    batch = jnp.array(on_device[: config.batch])
    return {
        "one resident batch": lambda state: _one_batch(state, batch, auto, chunk=chunk, **fixed),
        "device": lambda state: gcae.advance(state, on_device, places, auto, seed=0, chunk=chunk, **fixed),
        "stream": lambda state: gcae.advance_streamed(state, next(supply)[0], auto, seed=0, **fixed),
    }


def measure(path: Path, given: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Seconds per update of every mode in every round, and the loader's cells per second."""
    size = -(-given.genes // given.modules)
    index = np.arange(given.modules * size, dtype=np.int32).reshape(given.modules, size)
    layout = ModuleLayout(np.where(index < given.genes, index, 0), index < given.genes)
    auto = autoencoder.new(GCAEConfig(width=given.width, depth=given.depth), layout, 0)
    config = gcae.PretrainConfig(batch=given.batch)
    optimizer = make_optimizer(1e-4, 10_000, 200, "cosine", 1.0)
    seconds: dict[str, list[float]] = {}
    with open_store(path) as store:
        width = feed.stored(store.X, given.batch)
        chunk = feed.batches_per_call(given.chunk, width)
        rate = feed.loader_rate(store.X, batch=given.batch, calls=chunk)
        schedule = feed.Schedule(store.X, 0)
        # The stream's thread works while other modes are timed only until its queue is full.
        with feed.Feed(schedule, width, given.batch, chunk) as supply:
            supply.start(0)
            modes = _modes(store.X, auto, optimizer, config, chunk, supply)
            states = {name: initial_state(auto.params, optimizer) for name in modes}
            for number in range(given.rounds + 1):
                for name, forward in modes.items():
                    begun = time.perf_counter()
                    for _ in range(given.chunk // chunk * given.calls):
                        states[name], metrics = forward(states[name])
                    jax.block_until_ready(metrics)
                    if number:  # the first round compiles
                        done = given.chunk * given.calls
                        seconds.setdefault(name, []).append((time.perf_counter() - begun) / done)
    return seconds, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.2, help="share of genes expressed in a cell")
    parser.add_argument("--modules", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=10, help="updates in a call")
    parser.add_argument("--calls", type=int, default=1, help="of them in a round; more than 3 empty the stream's queue")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/stream")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prepared.h5ad")
        make_screen(path, given.cells, given.genes, given.density)
        megabytes = path.stat().st_size / 1e6
        seconds, rate = measure(path, given)
    floor = np.median(seconds["one resident batch"])
    rows, record = [["feed", "ms per update", "cells/s", "over one resident batch"]], {"loader_cells_per_s": rate}
    for name, found in seconds.items():
        each = float(np.median(found))
        record[name] = {"seconds": found, "ratio": each / floor}
        rows.append([name, f"{1e3 * each:.1f}", f"{given.batch / each:,.0f}", f"{each / floor:.3f}"])
    rows.append(["loader alone", "", f"{rate:,.0f}", ""])
    notes = [
        f"{given.cells:,} cells × {given.genes:,} genes, {given.density:.0%} of them expressed, {megabytes:,.0f} MB on disk; "
        f"{given.modules} modules, width {given.width}, depth {given.depth}, batch {given.batch}.",
        f"Medians of {given.rounds} rounds of {given.chunk * given.calls} updates, the three taken in turns; compilation "
        f"excluded. Peak memory of the process, which holds the cells on the device too: {peak_gigabytes():.2f} GB.",
        "The loader alone reads, shuffles, packs and sends batches that nothing uses.",
    ]
    command = (
        f"python -m benchmarks.stream --cells {given.cells} --width {given.width} --depth {given.depth} "
        f"--batch {given.batch} --chunk {given.chunk} --calls {given.calls} --rounds {given.rounds}"
    )
    write(given.out, "Feeding stage 1", command, rows, notes, record | {"settings": vars(given)})


if __name__ == "__main__":
    main()
