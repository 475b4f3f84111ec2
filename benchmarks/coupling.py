"""Which coupling? Independent, Sinkhorn over a grid of epsilon, exact and precomputed, on one trained autoencoder.

python -m benchmarks.coupling --run runs/bench_papalexi/0 --name papalexi
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.common import write
from scbig import config, evaluation, stages
from scbig.run import Run
from scbig.training import read_metrics

GRID = [("independent", 0.05), ("sinkhorn", 1.0), ("sinkhorn", 0.2), ("sinkhorn", 0.05), ("sinkhorn", 0.01),
        ("precomputed", 0.05)]  # fmt: skip


def measure(source: Path, name: str, coupling: str, epsilon: float, steps: int, runs: Path) -> dict[str, float]:
    """Stage 2 and what follows on one autoencoder with one coupling."""
    folder = runs / f"{name}-{source.name}-{coupling}-{epsilon}"
    if not folder.exists():
        left = shutil.ignore_patterns("flow", "evaluation", "predictions", "tensorboard")
        shutil.copytree(source, folder, ignore=left)
        Run(folder).forget("train")
    settings = config.read_json(folder / "config.json")
    settings.flow.coupling, settings.flow.epsilon = coupling, epsilon
    settings.flow.steps, settings.flow.evaluate_every, settings.flow.patience = steps, 100, 0
    run = stages.execute(folder, settings)
    scores, lines = evaluation.load(run.path("evaluation")), read_metrics(folder, "train")
    best = min(lines, key=lambda line: line["score"])
    trained = run.provenance["stages"]["train"]
    return {
        "perplexity": trained["remarks"].get("coupling_perplexity", best["perplexity"]),
        "score": best["score"],
        "step": best["step"],
        "last": lines[-1]["score"],
        "pearson_delta": scores.value("scBIG", "pearson_delta"),
        "e_distance_share": scores.value("scBIG", "e_distance_share"),
        "seconds": trained["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, nargs="+", help="finished runs of several seeds; reused up to pretrain")
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--runs", default="runs/bench_coupling")
    given = parser.parse_args()
    header = ["coupling", "ε", "row perplexity", "best score", "at step", "last score", "pearson_delta"]
    rows, record = [[*header, "e-distance share", "seconds"]], []
    for coupling, epsilon in GRID:
        each = [
            measure(Path(source), given.name, coupling, epsilon, given.steps, Path(given.runs)) for source in given.run
        ]
        mean = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
        record.append({"coupling": coupling, "epsilon": epsilon, "runs": each})
        rows.append(
            [
                coupling,
                "" if coupling == "independent" else f"{epsilon:g}",
                *(f"{mean['perplexity']:.1f}", f"{mean['score']:.4f}", f"{mean['step']:.0f}", f"{mean['last']:.4f}"),
                *(f"{mean['pearson_delta']:.3f}", f"{mean['e_distance_share']:.3f}", f"{mean['seconds']:.0f}"),
            ]
        )
    notes = [
        f"{given.steps} steps, mean over {len(given.run)} run(s), each with its own split, weights and autoencoder.",
        "The score is the distance of sampled to held-out cells relative to control's while training; lower is better. "
        "pearson_delta and e-distance share are the judge's, on the test part, with the parameters of the best score. "
        "Perplexity is the number of partners that a control effectively chooses among: of its condition's cells in a "
        "batch of 32, or, where precomputed, of all controls.",
    ]
    command = f"python -m benchmarks.coupling --run RUN --name {given.name} --steps {given.steps}"
    write(
        f"benchmarks/results/coupling_{given.name}", f"Coupling: {given.name}", command, rows, notes, {"grid": record}
    )


if __name__ == "__main__":
    main()
