"""Sampling from a trained run: cells per second and error by solver and steps, and memory by number of cells.

python -m benchmarks.sampling --run RUNDIR
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import markdown, peak_gigabytes, write
from scbig import flow, predict
from scbig.predict import tiles
from scbig.run import Run

CHOICES = (
    ("euler", 10),
    ("euler", 25),
    ("midpoint", 10),
    ("heun", 5),
    ("heun", 10),
    ("heun", 20),
    ("rk4", 5),
    ("rk4", 10),
)
TOLERANCE = 1e-6


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median over rounds, after one that compiles."""
    jax.block_until_ready(call())
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begun)
    return float(np.median(found))


def chosen(run: str, most: int) -> tuple[list[str], str]:
    """Perturbed conditions of the run's first context that its embeddings know."""
    table, predictor = predict.cell_table(Run(run)), predict.load(run)
    context = predictor.vocabulary.contexts[0]
    labels = sorted(set(table["condition"].astype(str)[np.asarray(table["context"] == context)]) - {"control"})
    known = [name for name in labels if not predictor.vocabulary.unknown(name.split("+"))]
    return known[:most], context


def reference(predictor: predict.Predictor, encoded, z0) -> np.ndarray:
    """Latents by diffrax's adaptive solver."""

    @jax.jit
    def solve(params, encoded, z0):
        network = nnx.merge(predictor.graph, params)

        def velocity(z, t):
            return network.guided(z, jnp.broadcast_to(t, (z.shape[0], 1)), encoded)

        return flow.integrate_adaptive(velocity, z0, TOLERANCE)

    return np.asarray(solve(predictor.params, encoded, z0))


def in_a_process(run: str, n_cells: int, names: list[str], context: str, suffix: str) -> tuple[float, float]:
    """Peak memory in GB and cells per second of writing so many cells of each condition in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps([run, str(Path(folder, f"cells{suffix}")), names, n_cells, context])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.sampling", "--write", given], capture_output=True, text=True, check=True
        )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def write_one(run: str, path: str, names: list[str], n_cells: int, context: str) -> None:
    predictor = predict.load(run)
    begun = time.perf_counter()
    written = predictor.write(path, names, n_cells, context=context)
    print(json.dumps([peak_gigabytes(), written / (time.perf_counter() - begun)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/bench_papalexi/0")
    parser.add_argument("--conditions", type=int, default=16)
    parser.add_argument("--cells", type=int, default=32, help="per condition, for speed and error")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--written", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="0: none")
    parser.add_argument("--suffix", choices=(".h5ad", ".zarr"), default=".h5ad")
    parser.add_argument("--out", default="benchmarks/results/sampling")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_one(*json.loads(given.write))
        return
    names, context = chosen(given.run, given.conditions)
    predictor = predict.load(given.run)
    groups = predictor._groups(names, context, 0.0)
    encoded = tiles.encode(predictor.graph, predictor.params, predictor.vocabulary.conditions(groups))
    z0 = jnp.asarray(predictor.z0[predictor._draw(groups, given.cells, 0)])
    exact = reference(predictor, encoded, z0)
    moved = np.linalg.norm(exact - np.asarray(z0), axis=-1)
    n, same = len(names) * given.cells, {"graph": predictor.graph, "at_once": 1}
    decode = jax.jit(lambda auto, z: jax.lax.map(auto.decode, z))
    decoding = seconds(lambda: decode(predictor.auto, exact), given.rounds)
    rows, record = [["solver", "steps", "error", "largest", "latents, cells/s", "decoded, cells/s"]], {}
    for solver, steps in CHOICES:
        options = tiles.Solver(steps, solver, 1.0, True)
        latent = jax.jit(lambda p, e, z, s=steps, k=solver: predict_latents(predictor.graph, p, e, z, s, k))
        plain = seconds(lambda f=latent: f(predictor.params, encoded, z0), given.rounds)

        def whole(options=options):
            return tiles._tile(predictor.params, predictor.auto, encoded, z0, None, None, options=options, **same)

        both = seconds(whole, given.rounds)
        away = np.linalg.norm(np.asarray(whole()[0]) - exact, axis=-1)
        error, worst = float(away.mean() / moved.mean()), float((away / np.maximum(moved, 1e-9)).max())
        rows.append([solver, str(steps), f"{error:.3%}", f"{worst:.2%}", f"{n / plain:,.0f}", f"{n / both:,.0f}"])
        record[f"{solver}-{steps}"] = {"error": error, "largest": worst, "latent": n / plain, "decoded": n / both}
    default = f"{predictor.settings.flow.solver}-{predictor.settings.flow.solver_steps}"
    share = decoding / (n / record[default]["decoded"]) if default in record else float("nan")
    notes = [
        f"{len(names)} conditions × {given.cells} cells of {given.run}: latents of {z0.shape[-1]}, velocity field "
        f"{predictor.settings.velocity.depth} × {predictor.settings.velocity.width}, {len(predictor.var):,} genes. Error: "
        f"mean distance to the latents of diffrax's Tsit5 at {TOLERANCE:g}, over the mean distance moved; largest: of any "
        f"cell, over its own. One compiled tile, median of {given.rounds} rounds, compilation not counted. Decoding alone "
        f"gives {n / decoding:,.0f} cells/s, {share:.0%} of the time with the run's solver ({default}).",
    ]
    written = [["cells", "peak memory, GB", "cells/s"]]
    for total in [total for total in given.written if total]:
        peak, rate = in_a_process(given.run, -(-total // len(names)), names, context, given.suffix)
        written.append([f"{total:,}", f"{peak:.2f}", f"{rate:,.0f}"])
        record[f"written {total}"] = {"peak_gb": peak, "rate": rate}
    if len(written) > 1:
        notes += [f"Written to {given.suffix}, whole commands in processes of their own:", markdown(written)]
    command = f"python -m benchmarks.sampling --run {given.run}"
    write(given.out, "Sampling", command, rows, notes, record)


def predict_latents(graph, params, encoded, z0, steps: int, solver: str):
    from scbig.training import sample_latents

    return sample_latents(nnx.merge(graph, params), encoded, z0, steps, solver)


if __name__ == "__main__":
    main()
