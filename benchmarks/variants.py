"""What a setting of stage 2 changes: variants of the flow on finished runs, each with its trained autoencoder.

python -m benchmarks.variants --grid coupling --run runs/bench_papalexi/0 --name papalexi
python -m benchmarks.variants --grid step --run runs/bench_simulated/{0,1,2} --name simulated
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import write
from scbig import evaluation
from scbig.stages.forks import fork
from scbig.training import read_metrics

# What the anchor does well hides what these settings do.
_ALL = ["anchor.method=", "evaluation.ceiling_draws=0", "evaluation.baselines=control,additive,low_rank"]
_SHORT = ["flow.steps=800", "flow.evaluate_every=100", "flow.patience=0"]
GRIDS: dict[str, dict[str, list[str]]] = {
    # Which control each cell is paired with.
    "coupling": {
        "independent": ["flow.coupling=independent", *_SHORT],
        **{f"Sinkhorn, ε = {e:g}": ["flow.coupling=sinkhorn", f"flow.epsilon={e}", *_SHORT] for e in (1.0, 0.2, 0.05, 0.01)},
        "precomputed, ε = 0.05": ["flow.coupling=precomputed", "flow.epsilon=0.05", *_SHORT],
    },
    # What a step leaves out to be quicker.
    "step": {
        "default": ["flow.align_conditions=1", "flow.align_every=2"],
        "two conditions aligned, in every step": ["flow.align_conditions=2", "flow.align_every=1"],
        "a time for each cell": ["flow.align_conditions=1", "flow.align_every=2", "flow.times=0"],
    },
}  # fmt: skip
SCORES = ("pearson_delta", "e_distance_share", "coexpression_error", "variance_ratio")


def measure(source: Path, name: str, changes: list[str], runs: Path) -> dict[str, float]:
    """Stage 2 and what follows on one autoencoder with other settings."""
    folder = runs / f"{name}-{source.name}"
    run = fork(source, folder, [*_ALL, *changes])
    scores, lines = evaluation.load(run.path("evaluation")), read_metrics(folder, "train")
    best = min(lines, key=lambda line: line["score"])
    trained = run.provenance["stages"]["train"]
    return {
        "perplexity": trained["remarks"].get("coupling_perplexity", best["perplexity"]),
        "score": best["score"],
        "step": best["step"],
        **{metric: scores.value("scBIG", metric) for metric in SCORES},
        "seconds": trained["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, required=True)
    parser.add_argument("--run", required=True, nargs="+", help="finished runs of several seeds; reused up to pretrain")
    parser.add_argument("--name", required=True)
    parser.add_argument("--runs", default="runs/bench_variants")
    given = parser.parse_args()
    header = ["variant", "row perplexity", "best score", "at step", *SCORES, "seconds of stage 2"]
    rows, record = [header], {}
    for number, (variant, changes) in enumerate(GRIDS[given.grid].items()):
        label = f"{given.name}-{given.grid}-{number}"
        each = [measure(Path(source), label, changes, Path(given.runs)) for source in given.run]
        mean = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
        record[variant] = each
        told = [f"{mean['perplexity']:.1f}", f"{mean['score']:.4f}", f"{mean['step']:.0f}"]
        rows.append([variant, *told, *(f"{mean[metric]:.3f}" for metric in SCORES), f"{mean['seconds']:.0f}"])
    notes = [
        f"Means over {len(given.run)} run(s), each with its own split, weights and autoencoder.",
        "The score is the distance of sampled to held-out cells relative to control's while training; lower is better. "
        "The other columns are the judge's, on the test part, with the parameters of the best score. "
        "Perplexity is the number of partners that a control effectively chooses among: of its condition's cells in a "
        "batch, or, where precomputed, of all controls.",
    ]
    command = f"python -m benchmarks.variants --grid {given.grid} --run {' '.join(given.run)} --name {given.name}"
    title = f"Variants of stage 2 ({given.grid}): {given.name}"
    write(f"benchmarks/results/{given.grid}_{given.name}", title, command, rows, notes, {"variants": record})


if __name__ == "__main__":
    main()
