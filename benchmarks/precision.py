"""Products in bfloat16 against float32 on the simulated screen: does rounding their operands cost accuracy?

python -m benchmarks.precision --seeds 3

Each seed is prepared and clustered once, then trained, sampled and scored in both precisions. Where the device does not
multiply in bfloat16 (CPUs do not), its products are emulated: operands are rounded to bfloat16, sums stay float32. Only
products that leave the choice to the setting are rounded, so those that ask for all of float32 are tested as they run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import jax
import numpy as np

from benchmarks.common import write
from benchmarks.simulated import against_truth
from scbig import config, evaluation, programs, stages
from scbig.data.simulate import SimConfig, save, simulate
from scbig.run import Run

PRECISIONS = ("float32", "bfloat16")


def emulate() -> None:
    """Has this process round the operands of products where they are asked for in bfloat16, as a GPU does."""
    from jax.interpreters import mlir

    product = jax.lax.dot_general_p
    # JAX offers no way to read a rule, only to set one.
    usual = mlir._platform_specific_lowerings["cpu"][product].rule
    asked = jax.lax.DotAlgorithmPreset.BF16_BF16_F32

    def rounded(ctx, x, y, *, precision, **settings):
        if asked not in (precision if isinstance(precision, tuple) else (precision,)):
            return usual(ctx, x, y, precision=precision, **settings)

        def both(a, b):
            a, b = jax.lax.reduce_precision(a, 8, 7), jax.lax.reduce_precision(b, 8, 7)
            return product.bind(a, b, precision=jax.lax.Precision.HIGHEST, **settings)

        return mlir.lower_fun(both, multiple_results=False)(ctx, x, y)

    mlir.register_lowering(product, rounded, platform="cpu")
    programs.multiplies_in_bfloat16 = lambda: True


def rounds() -> float:
    """Largest error of a product within ``programs.precision("bfloat16")``, as a share of the exact one's scale."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(64, 256)).astype(np.float32) for _ in range(2))
    with programs.precision("bfloat16"):
        found = np.asarray(jax.jit(lambda a, b: a @ b.T)(x, y))
    exact = x.astype(np.float64) @ y.T.astype(np.float64)
    return float(np.abs(found - exact).max() / exact.std())


def one(folder: Path, precision: str) -> None:
    """Trains, samples and scores a prepared run in one precision; a process of its own."""
    if precision == "bfloat16" and not programs.multiplies_in_bfloat16():
        # What was compiled for float32 must not be taken for it.
        jax.config.update("jax_enable_compilation_cache", False)
        emulate()
        error = rounds()
        assert 1e-3 < error < 2e-2, f"the emulation does not round as bfloat16 does: {error}"
    settings = config.read_json(folder / "config.json")
    settings.precision = precision
    stages.execute(folder, settings)


def prepared(folder: Path, seed: int, size: SimConfig, quick: bool) -> None:
    """The simulated screen with everything before training, once for both precisions."""
    if not (folder / "simulated").exists():
        save(simulate(size), folder / "simulated")
    settings = config.demo(folder)
    settings.seed = settings.split.seed = seed
    if quick:
        settings.pretrain.epochs, settings.flow.steps = 5, 250
    stages.execute(folder, settings, ("prepare", "cluster"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs/bench_precision")
    parser.add_argument("--quick", action="store_true", help="train for a few steps only, to see that it works")
    parser.add_argument("--out", default="benchmarks/results/precision")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "PRECISION"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(Path(given.one[0]), given.one[1])
        return
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PRECISIONS}
    for seed in range(given.seeds):
        base = Path(given.runs, str(seed))
        prepared(base, seed, SimConfig.demo(seed), given.quick)
        truth = ad.read_h5ad(base / "simulated" / "truth.h5ad")
        for precision in PRECISIONS:
            folder = Path(given.runs, f"{seed}-{precision}")
            if not folder.exists():
                shutil.copytree(base, folder)
            command = [sys.executable, "-m", "benchmarks.precision", "--one", str(folder), precision]
            subprocess.run(command, check=True)
            run, scores = Run(folder), evaluation.load(folder / "evaluation")
            record = run.provenance["stages"]
            values = {
                "held-out reconstruction error": record["pretrain"]["remarks"]["held_out_error"],
                "held-out distance": record["train"]["remarks"]["held_out_score"],
                "Pearson with the truth": float(np.mean(list(against_truth(scores, truth, run)["scBIG"].values()))),
                "pearson_delta": scores.value("scBIG", "pearson_delta"),
                "e_distance_share": scores.value("scBIG", "e_distance_share"),
            }
            for name, value in values.items():
                found[precision].setdefault(name, []).append(float(value))
    names = list(found["float32"])
    rows = [["", *PRECISIONS, "difference", "spread over seeds"]]
    for name in names:
        a, b = (np.array(found[precision][name]) for precision in PRECISIONS)
        spread = f"{a.std(ddof=1):.4f}" if len(a) > 1 else ""
        rows.append([name, f"{a.mean():.4f}", f"{b.mean():.4f}", f"{(b - a).mean():+.4f}", spread])
    device = jax.devices()[0]
    how = (
        "as the device does it" if programs.multiplies_in_bfloat16() else "emulated: operands rounded, sums in float32"
    )
    notes = [
        f"Device: {device.device_kind}; bfloat16 is {how}. Means over {given.seeds} simulated screens, the same seeds in "
        "both precisions; the spread is the standard deviation of float32 over seeds. Lower is better for errors and "
        "distances.",
    ]
    command = f"python -m benchmarks.precision --seeds {given.seeds}" + (" --quick" if given.quick else "")
    write(given.out, "Products in bfloat16 against float32", command, rows, notes, {"found": found})


if __name__ == "__main__":
    main()
