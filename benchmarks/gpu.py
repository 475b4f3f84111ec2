"""The paper's Norman setting end to end on one accelerator, with every step's time against a roofline.

Command: .venv/bin/python -m benchmarks.gpu                      (a GPU; simulated cells at Norman's size)
         .venv/bin/python -m benchmarks.gpu --quick --device cpu  (that the script works, at a toy size)

91,000 simulated cells × 2,051 genes × 230 conditions: stage 1 for 100 epochs without stopping early, stage 2 for 25,000
updates of 20 conditions × 1,024 cells, and 500 sampled cells per test condition. The roofline is the larger of
floating-point operations over the device's own matrix rate and bytes over its own memory rate, both measured here first.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import scale_data
from benchmarks.common import write
from scbig import config, stages
from scbig.stages import bench
from scbig.training import read_metrics

PUBLISHED = 79.0  # CellFlow's iterations per second as its authors give them


def peaks(quick: bool) -> tuple[float, float]:
    """Floating-point operations and bytes per second that this device reaches in a product and in a sum of arrays."""
    n = 1024 if quick else 8192
    x = jnp.ones((n, n), jnp.float32)

    def rate(function, amount):
        function = jax.jit(function)
        jax.block_until_ready(function(x))
        best = float("inf")
        for _ in range(5):
            begun = time.perf_counter()
            jax.block_until_ready(function(x))
            best = min(best, time.perf_counter() - begun)
        return amount / best

    return rate(lambda a: a @ a, 2.0 * n**3), rate(lambda a: a + 1.0, 8.0 * n * n)


def settings(folder: Path, quick: bool, device: str):
    """The paper's architecture and schedule on the simulated screen."""
    c = config.load("configs/norman_paper.py")
    c.name, c.device = "norman_size", device
    c.data.path, c.data.condition, c.data.separator, c.data.batch = str(folder / "screen.h5ad"), "", "", ""
    c.data.n_top_genes = c.data.min_genes = c.data.min_cells_per_gene = 0
    priors = config.demo(folder).priors
    c.priors = priors
    c.priors.dir = str(folder / "priors")
    c.pretrain.patience = c.flow.patience = 0  # the whole schedule: the time must not depend on luck
    c.evaluation.ceiling_draws = 0
    if quick:
        c.modules.n_modules, c.gcae.width, c.gcae.depth, c.gcae.heads, c.velocity.width = 8, 32, 1, 2, 64
        c.pretrain.epochs, c.flow.steps, c.flow.evaluate_every, c.flow.chunk = 1, 20, 10, 5
        c.flow.conditions, c.flow.cells, c.flow.align_cells = 4, 16, 16
        c.split.n_test = c.split.n_val = 4
    return c


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu"))
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    screen = given.out / "screen"
    cells, genes, conditions = (2000, 120, 20) if given.quick else (91_000, 2051, 230)
    scale_data.make(scale_data.settings(cells, genes, conditions, 1.0, 0), screen)
    c = settings(screen, given.quick, given.device)
    begun = time.perf_counter()
    run = stages.execute(given.out / "run", c, ("prepare", "cluster", "pretrain", "train", "sample"))
    whole = time.perf_counter() - begun
    seconds = {name: done["seconds"] for name, done in run.provenance["stages"].items()}
    rows = [["part", "seconds"], *[[name, f"{value:.0f}"] for name, value in seconds.items()]]
    rows.append(["all", f"{whole:.0f}"])
    limits = peaks(given.quick)
    notes = [
        f"{cells:,} simulated cells × {genes:,} genes × {conditions} conditions; compilation and evaluations included.",
        f"This device reaches {limits[0] / 1e12:.1f} Tflop/s in a float32 product at JAX's default precision and "
        f"{limits[1] / 1e9:.0f} GB/s in a sum of arrays.",
    ]
    record = {"seconds": seconds, "whole": whole, "peaks": limits, "steps": []}
    for title, changes in (
        ("the paper's network and batch", {}),
        ("without alignment", {"lambda_corr": 0.0, "lambda_path": 0.0}),
        ("CellFlow's published network, one condition × 1,024 cells, without alignment",
         {"lambda_corr": 0.0, "lambda_path": 0.0, "conditions": 1, "cells": 1024, "width": 2048, "depth": 6}),
    ):  # fmt: skip
        if given.quick:
            changes = {k: min(v, 64) if isinstance(v, int) else v for k, v in changes.items()}
        found = step(c, run, changes, limits)
        record["steps"].append({"what": title, **found})
        notes.append(
            f"A step of stage 2, {title}: {found['ms']:.2f} ms, {1e3 / found['ms']:.0f} a second; "
            f"roofline {found['roofline_ms']:.2f} ms ({found['flops'] / 1e9:.1f} Gflop, {found['bytes'] / 1e9:.2f} GB)."
        )
    fastest = 1e3 / record["steps"][-1]["ms"]
    notes.append(f"CellFlow's published rate is {PUBLISHED:.0f} a second: {fastest / PUBLISHED:.1f} times that here.")
    for stage in ("pretrain", "train"):
        lines = read_metrics(run.folder, stage)
        notes.append(f"{stage}: score {lines[0]['score']:.4f} at first, {min(x['score'] for x in lines):.4f} at best.")
    name = "gpu_quick" if given.quick else "gpu"
    write(
        str(given.out / name) if given.quick else f"benchmarks/results/{name}",
        "The paper's Norman setting on one accelerator",
        "python -m benchmarks.gpu",
        rows,
        notes,
        record,
    )


def step(c, run, changes, limits) -> dict[str, float]:
    """Milliseconds of a training step with other settings, and what its operations and bytes would need at the least."""
    c = c.copy_and_resolve_references()
    for name, value in changes.items():
        group = c.velocity if name in ("width", "depth") else c.flow
        group[name] = value
    found = bench.bench(c, bench.Sizes(), run, operations=True)
    flops, size = found["flow_step_flop"], found["flow_step_bytes"]
    whole = found["flow_step_ms"] * (1.0 + (found["alignment_overhead"] or 0.0))
    return {
        "ms": whole,
        "flops": flops,
        "bytes": size,
        "roofline_ms": 1e3 * max(flops / limits[0], size / limits[1]),
        "over_floor": found["flow_step_over_network_floor"],
    }


if __name__ == "__main__":
    main()
