"""How memory and time grow with cells, genes, modules and conditions.

Command: .venv/bin/python -m benchmarks.scale                    (10⁴, 10⁵ and 10⁶ simulated cells; some 40 minutes)
         .venv/bin/python -m benchmarks.scale --cells 1000 3000  (that the script works)

Every stage is a process of its own, streamed whatever the size; its peak is the largest sum of resident memory over it
and the processes that it starts. Times of a step by genes, modules and conditions are of ``scbig bench``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.common import write
from scbig.training import read_metrics

STAGES = ("prepare", "cluster", "pretrain", "train", "sample")
STREAMED = ("data.backend=dask", "pretrain.feed=stream")
SIZES = {
    "genes": (2000, 5000, 10_000),
    "modules": (32, 64, 128),
    "conditions": (100, 1000, 10_000),
}


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds and peak gigabytes of a command and everything that it starts."""
    begun, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None:
        total = 0
        for each in (process, *_children(process)):
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{process.stdout.read()}")
    return time.perf_counter() - begun, peak / 1e9


def _children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def settings(cells: int, folder: Path) -> list[str]:
    """A small network, streamed, since memory is the question, for as many updates whatever the number of cells."""
    return [
        f"data.path={folder}/screen/screen.h5ad", f"priors.dir={folder}/screen/priors", *STREAMED,
        f"pretrain.epochs={max(1, round(400 * 256 / (0.8 * cells)))}", "pretrain.patience=0", "flow.steps=400",
        "gcae.width=32", "gcae.depth=1", "gcae.heads=2",
        "flow.evaluate_every=100", "flow.patience=0",
    ]  # fmt: skip


def one(cells: int, genes: int, runs: Path) -> dict[str, dict[str, float]]:
    """Every stage on a screen of so many cells; as many cells are sampled."""
    folder = runs / str(cells)
    shutil.rmtree(folder, ignore_errors=True)
    here = [sys.executable, "-m"]
    conditions, n_test = 100, 10
    made, made_peak = watched(
        [*here, "benchmarks.scale_data", "--cells", str(cells), "--genes", str(genes), "--conditions", str(conditions),
         "--depth", "0.4", "--out", str(folder / "screen")]
    )  # fmt: skip
    found = {"make": {"seconds": made, "gb": made_peak}}
    extra = [f"split.n_test={n_test}", f"sample.n_cells={cells // n_test}"]
    changes = [f"--config.{each}" for each in (*settings(cells, folder), *extra)]
    for stage in STAGES:
        command = [*here, "scbig.cli", stage, "--workdir", str(folder / "run"), "--config", "configs/demo.py"]
        seconds, peak = watched([*command, *changes])
        found[stage] = {"seconds": seconds, "gb": peak}
        print(f"{cells:,} cells, {stage}: {seconds:.0f} s, {peak:.2f} GB", flush=True)
    found["pretrain"]["steps"] = read_metrics(folder / "run", "pretrain")[-1]["step"]
    found["train"]["step_ms"] = step_milliseconds(folder / "run")
    found["loader"] = {"cells_per_s": bench("--workdir", str(folder / "run"))["loader_cells_per_s"]}
    shutil.rmtree(folder)
    return found


def step_milliseconds(run: Path) -> float:
    """A step of stage 2 with its share of one evaluation, from the times at which TensorBoard's records were written."""
    from tensorboardX.proto.event_pb2 import Event

    seen = {}
    for file in (run / "tensorboard" / "train").iterdir():
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16
            if any(value.tag.endswith("loss") for value in event.summary.value):
                seen[event.step] = event.wall_time
    first, *_, last = sorted(seen)
    return 1e3 * (seen[last] - seen[first]) / (last - first)


def bench(*options: str) -> dict:
    """What ``scbig bench --json`` says."""
    command = [sys.executable, "-m", "scbig.cli", "bench", "--json", "--quick", *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def by_size() -> list[str]:
    """A step of either stage by genes, modules and conditions, the demo's network."""
    base = {"genes": 2000, "modules": 32, "conditions": 100}
    told = []
    for name, values in SIZES.items():
        each = []
        for value in values:
            size = base | {name: value}
            cells = max(10_000, 4 * size["conditions"])
            found = bench(
                "--config", "configs/demo.py", "--genes", str(size["genes"]), "--conditions", str(size["conditions"]),
                "--cells", str(cells), f"--config.modules.n_modules={size['modules']}",
            )  # fmt: skip
            each.append(f"{value:,}: {found['gcae_step_ms']:.0f} and {found['flow_step_ms']:.1f} ms")
        told.append(f"A step of stage 1 and of stage 2 by {name}: " + "; ".join(each) + ".")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--sizes", action="store_true", help="steps by genes, modules and conditions as well")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_scale"))
    given = parser.parse_args()
    found = {cells: one(cells, given.genes, given.runs) for cells in given.cells}
    rows = [["stage", *[f"{cells:,} cells" for cells in given.cells], "memory, last over the one before"]]
    for stage in STAGES:
        each = [found[cells][stage] for cells in given.cells]
        told = [f"{e['gb']:.2f} GB, {e['seconds']:.0f} s" for e in each]
        rows.append([stage, *told, f"{each[-1]['gb'] / each[-2]['gb']:.2f}"])
    steps = ", ".join(f"{found[cells]['train']['step_ms']:.1f} ms at {cells:,}" for cells in given.cells)
    loader = ", ".join(f"{found[cells]['loader']['cells_per_s']:,.0f} at {cells:,}" for cells in given.cells)
    updates = ", ".join(f"{found[cells]['pretrain']['steps']:,} at {cells:,}" for cells in given.cells)
    notes = [
        f"{given.genes:,} genes, 100 conditions, simulated; prepared by blocks on Dask, stage 1 streamed, as many cells "
        "sampled as the screen has. Whole processes, start and compilation included. Updates in stage 1: "
        f"{updates}; in stage 2: 400.",
        f"A step of stage 2 with its share of the evaluations: {steps}.",
        f"The loader of stage 1 alone, cells a second: {loader}.",
        *(by_size() if given.sizes else ()),
    ]
    write("benchmarks/results/scale", "Memory and time by number of cells", "python -m benchmarks.scale", rows, notes,
          {"cells": {str(k): v for k, v in found.items()}})  # fmt: skip


if __name__ == "__main__":
    main()
