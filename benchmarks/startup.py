"""How long a user waits: `scbig --help`, and the first training steps with and without compiled programs at hand.

python -m benchmarks.startup

Makes a prepared run of the demo's screen in runs/bench_startup, or takes --run, a run directory with its prepare, cluster
and pretrain done. Each figure is a process of its own, from its start.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write

# The stage as it is, stopped at the end of the loop's first call of the step.
FIRST_STEPS = """
import sys, time
begun = time.time() - float(sys.argv[3])
import jax
from scbig import config, stages
from scbig.training import loop

def stopped(stage, state, advance, evaluate, schedule, folder, log_folder):
    from scbig import devices
    ready = time.time()
    state, metrics = advance(devices.replicate(state))
    jax.block_until_ready((state, metrics))
    now = time.time()
    print("MEASURED", now - float(sys.argv[3]), now - ready, schedule.chunk, flush=True)
    raise SystemExit(0)

loop.run = stopped
settings = config.read_json(sys.argv[1] + "/config.json")
stages.execute(sys.argv[1], settings, (sys.argv[2],))
"""


def prepared(folder: Path) -> Path:
    """A run of the demo's screen and settings with everything before the flow; the autoencoder is trained briefly."""
    from scbig import config, stages
    from scbig.data.simulate import SimConfig, save, simulate

    if not (folder / "simulated").exists():
        save(simulate(SimConfig.demo(0)), folder / "simulated")
    settings = config.demo(folder)
    settings.pretrain.epochs = 1
    stages.execute(folder, settings, ("prepare", "cluster", "pretrain"))
    return folder


def first_steps(run: Path, stage: str, cache: str) -> tuple[float, float, int]:
    """Seconds from the start of the process to the end of the first call, those of the call, and its updates."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(run, Path(scratch, "run"), ignore=shutil.ignore_patterns("simulated")))
        from scbig.run import Run

        Run(copy).forget(stage)
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        command = [sys.executable, "-c", FIRST_STEPS, str(copy), stage, str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    measured = [line.split() for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if not measured:
        raise RuntimeError(f"stage {stage} ended before its first step:\n{done.stdout}{done.stderr}")
    return float(measured[0][1]), float(measured[0][2]), int(measured[0][3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help="a run directory with prepare, cluster and pretrain done")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/startup")
    given = parser.parse_args()
    run = Path(given.run) if given.run else prepared(Path("runs/bench_startup"))
    seconds: dict[str, list[float]] = {"help": []}
    for _ in range(2 * given.rounds + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "scbig.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds["help"].append(time.perf_counter() - begun)
    chunks = {}
    for stage in ("pretrain", "train"):
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    whole, call, chunks[stage] = first_steps(run, stage, cache)
                    seconds.setdefault(f"{stage} {kind}", []).append(whole)
                    seconds.setdefault(f"{stage} {kind}, call", []).append(call)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [["", "first use", "programs kept from before"]]
    rows.append(["scbig --help", f"{middle['help']:.2f} s", ""])
    for stage, chunk in chunks.items():
        rows.append(
            [f"{stage}: process start to the end of the first {chunk} updates"]
            + [f"{middle[f'{stage} {kind}']:.1f} s" for kind in ("cold", "warm")]
        )
        rows.append(
            [f"{stage}: of that, compiling and making these updates"]
            + [f"{middle[f'{stage} {kind}, call']:.1f} s" for kind in ("cold", "warm")]
        )
    notes = [
        f"Medians of {given.rounds} rounds. First use: an empty folder of compiled programs. Reading the screen, the flow's "
        "fit of its shift and what it compiles are included in the time from the start of the process."
    ]
    command = "python -m benchmarks.startup" + (f" --run {given.run}" if given.run else "")
    write(given.out, "Start-up", command, rows, notes, {"seconds": seconds, "run": str(run)})


if __name__ == "__main__":
    main()
