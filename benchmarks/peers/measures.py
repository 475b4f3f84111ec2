"""The comparisons: what is asked of each side, by turns, and what comes of it. Each gives rows, notes and a record."""

from __future__ import annotations

import shutil
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from benchmarks.peers.screen import Screen
from benchmarks.peers.setup import interpreter, version
from benchmarks.peers.worker import Worker
from scbig import evaluation

__all__ = ["Outcome", "gears", "quality", "sampling", "speed"]

Outcome = tuple[list[list[str]], list[str], dict[str, Any]]

WIDTH = 1024
# Two layers of 1,024 wherever our network has two: cells, time, and what follows their joining.
DEEP = {"hidden": [WIDTH] * 2, "time_encoder": [WIDTH] * 2, "decoder": [WIDTH] * 2}
# As many layers on a cell's way from latent to velocity as in our network.
SHALLOW = {"hidden": [WIDTH], "time_encoder": [WIDTH], "decoder": [WIDTH]}
# On Papalexi ahead of 1e-3 after 200 batches. Its default (5e-5, twenty batches to an update) is for far longer runs.
RATE = 2e-4
_CHUNK = 10  # updates of ours in one call
_RATIOS = ("CellFlow's over it, with compilation", "the same without")
_JUDGED = 200  # cells of each condition before the judge
_JUDGE = ("pearson_delta", "l2", "pds_l1", "e_distance_share")
# Flow against flow: without the anchor, whose fit would have done most of the work before the first step.
_SAME = ["velocity.width=1024", "velocity.depth=2", "condition.width=256", "anchor.method="]
_UNALIGNED = ["flow.lambda_corr=0.0", "flow.lambda_path=0.0"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ours(stack: ExitStack, screen: Screen, shared: str, overrides: list[str]) -> tuple[Worker, dict[str, Any]]:
    worker = stack.enter_context(Worker("scBIG", sys.executable, "benchmarks.peers.ours"))
    place = [f"priors.dir={Path(shared, 'priors').resolve()}"]
    return worker, worker.ask("load", run=str(screen.folder.resolve()), overrides=[*place, *screen.changes, *overrides])


def _cellflow(stack: ExitStack, screen: Screen, work: Path) -> Worker:
    python = interpreter("cellflow")
    worker = stack.enter_context(Worker("CellFlow", python, "benchmarks.peers.cellflow_adapter"))
    vectors = screen.vectors(work / "embeddings.npz")
    worker.ask("load", run=str(screen.folder.resolve()), embeddings=str(vectors.resolve()))
    return worker


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def speed(screen: Screen, shared: str, work: Path, rounds: int, steps: int) -> Outcome:
    """Steps of stage 2 per second, alignment off, everything that a step does included, compilation not."""
    rows = [["cells in a step", "method", "batch", "parameters", "steps/s (median)", "range", "scBIG over it"]]
    record: dict[str, Any] = {"versions": version("cellflow"), "batches": {}}
    with ExitStack() as stack:
        overrides = [*_SAME, *_UNALIGNED, "flow.coupling=sinkhorn"]
        ours = {kind: _ours(stack, screen, shared, overrides) for kind in ("scBIG", "scBIG, one condition")}
        theirs = {kind: _cellflow(stack, screen, work) for kind in ("CellFlow", "CellFlow, fewer layers")}
        for batch in (256, 1024):
            told: dict[str, tuple[str, int]] = {}
            for (kind, (worker, count)), conditions in zip(ours.items(), (16, 1), strict=True):
                worker.ask("start", conditions=conditions, cells=batch // conditions, chunk=steps, evaluate_every=steps)
                worker.ask("train", calls=1)
                told[kind] = f"{conditions} × {batch // conditions}", count["network"]
            for (kind, worker), widths in zip(theirs.items(), (DEEP, SHALLOW), strict=True):
                count = worker.ask("start", batch=batch, rate=RATE, **widths)["network"]
                worker.ask("train", steps=3)
                told[kind] = f"1 × {batch}", count
            rates: dict[str, list[float]] = {kind: [] for kind in told}
            for number in range(rounds):
                for kind, (worker, _) in ours.items():
                    rates[kind].append(steps / worker.ask("train", calls=1)["seconds"][0])
                for kind, worker in theirs.items():
                    rates[kind].append(steps / sum(worker.ask("train", steps=steps)["seconds"]))
                _say(f"{batch} cells, round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f}/s" for k, v in rates.items()))
            best = statistics.median(rates["scBIG"])
            for kind, each in rates.items():
                middle = statistics.median(each)
                batches, count = told[kind]
                spread = f"{min(each):.1f} to {max(each):.1f}"
                ratio = "" if kind.startswith("scBIG") else f"{best / middle:.2f}"
                rows.append([str(batch), kind, batches, _millions(count), f"{middle:.1f}", spread, ratio])
            record["batches"][batch] = {"steps_per_s": rates, "parameters": {k: c for k, (_, c) in told.items()}}
    notes = [
        "Equal: latents, cells in a step, conditions' vectors joined from the same sources, width "
        f"{WIDTH} and depth 2 of the layers (CellFlow: two for the cell, two for the time, two after they are joined, "
        "its default way of conditioning; ours: two residual layers modulated by time and condition, and one in and "
        "out), width 256 of the condition, Adam in every step, Sinkhorn coupling.",
        "Not equal, each side's own way: CellFlow takes one condition a step and couples all its cells at ε = 1 × mean "
        "cost; ours takes 16 conditions and couples within each at ε = 0.05 × mean cost. 'One condition' is ours with "
        "CellFlow's form of batch. Ours also drops 10% of hidden units, clips gradients, averages parameters and fits the "
        "shift in every step, and keeps a tenth of the training cells back; CellFlow looks at the loss after each step, "
        "as its trainer does. 'Fewer layers' has as many "
        "layers between latent and velocity as ours. Ratios are of medians, ours by default against the row's.",
    ]
    return rows, notes, record


def _samples(worker: Worker, screen: Screen, conditions: list[str], work: Path, z0: np.ndarray, **more: Any) -> tuple:
    """Sampled latents and what else the side told."""
    source, out = work / "z0.npy", work / f"{worker.name}.npz"
    np.save(source, z0)
    given = {
        "conditions": conditions,
        "context": screen.context,
        "z0": str(source.resolve()),
        "out": str(out.resolve()),
    }
    told = worker.ask("sample", **given, **more)
    with np.load(out) as file:
        return file["z"], told


def _reached(curve: list[dict[str, float]], metric: str, target: float, clock: str) -> float:
    """Seconds until the metric is as good as the target; NaN if never."""
    better = (lambda value: value <= target) if metric == "e_distance" else (lambda value: value >= target)
    return next((point[clock] for point in curve if better(point[metric])), float("nan"))


def quality(
    screen: Screen, shared: str, work: Path, iterations: int, evaluations: int, rate: float, seed: int
) -> Outcome:
    """Seconds of training until test cells are met as well as CellFlow ever meets them; both trained by turns."""
    curves: dict[str, list[dict[str, float]]] = {}
    times: dict[str, list[float]] = {}
    before: dict[str, list[float]] = {"CellFlow": [0.0, 0.0]}
    with ExitStack() as stack:
        theirs = _cellflow(stack, screen, work)
        theirs.ask("start", batch=256, rate=rate, seed=seed, **DEEP)
        sides = {"CellFlow": (theirs, "steps", iterations)}
        variants = {"scBIG": [], "scBIG, equal network": [*_SAME, *_UNALIGNED]}
        for name, changes in variants.items():
            worker = _ours(stack, screen, shared, changes)[0]
            # What precedes the first step is done twice: with compilation, and without.
            told = [worker.ask("start", seed=seed, chunk=_CHUNK) for _ in range(2)]
            before[name] = [each["seconds"] for each in told]
            sides[name] = worker, "calls", told[0]["total"] // _CHUNK
        for number in range(1, evaluations + 1):
            for name, (worker, unit, total) in sides.items():
                # More of them in the beginning, where most is learned.
                done, goal = len(times.setdefault(name, [])), max(1, round(total * (number / evaluations) ** 1.5))
                if goal > done:
                    times[name] += worker.ask("train", **{unit: goal - done})["seconds"]
                for which in ("ema", "params") if unit == "calls" else ("",):
                    more = {"which": which} if which else {}
                    z = _samples(worker, screen, screen.watched, work, screen.z0, **more)[0]
                    curves.setdefault(f"{name} ({which})" if which else name, []).append(
                        {"done": goal, **screen.score(z)}
                    )
            _say("  ".join(f"{name}: {each[-1]['e_distance']:.3f} {each[-1]['pearson_delta']:.4f}"
                           for name, each in curves.items()))  # fmt: skip
        for name, (worker, _, _) in sides.items():
            z = _samples(worker, screen, screen.tested, work, screen.z0[:_JUDGED])[0]
            screen.cells(name, z).write_h5ad(work / f"cells {name}.h5ad")
    for name, curve in curves.items():
        each = times[name.split(" (")[0]]
        usual = statistics.median(each[1:])
        with_compilation, without = before[name.split(" (")[0]]
        for point in curve:
            point["seconds"] = with_compilation + sum(each[: point["done"]])
            point["without"] = without + usual + sum(each[1 : point["done"]])
    rows, notes, record = _quality_table(curves, screen, f"{iterations} batches of 256 cells, Adam at {rate}")
    return rows, notes, record | {"seed": seed, "rate": rate}


def _quality_table(curves: dict[str, list[dict[str, float]]], screen: Screen, trained: str) -> Outcome:
    best = {"e_distance": min(point["e_distance"] for point in curves["CellFlow"])}
    best["pearson_delta"] = max(point["pearson_delta"] for point in curves["CellFlow"])
    near = {"e_distance": best["e_distance"] * 1.1, "pearson_delta": best["pearson_delta"] - 0.005}
    rows = [["to reach", "method", "seconds with compilation", "seconds without", *_RATIOS, "best of all"]]
    for kind, targets in (("its best", best), ("near its best", near)):
        for metric, target in targets.items():
            theirs = [_reached(curves["CellFlow"], metric, target, clock) for clock in ("seconds", "without")]
            for name, curve in curves.items():
                mine = [_reached(curve, metric, target, clock) for clock in ("seconds", "without")]
                ratio = [""] * 2 if name == "CellFlow" else [f"{a / b:.1f}" for a, b in zip(theirs, mine, strict=True)]
                choose = min if metric == "e_distance" else max
                top = choose(point[metric] for point in curve)
                told = [f"{each:.1f}" for each in mine]
                rows.append([f"{metric} {target:.3f} ({kind})", name, *told, *ratio, f"{top:.3f}"])
    notes = [
        f"Means over {', '.join(screen.watched)}: held-out controls ({len(screen.z0)}) carried to each, decoded by our "
        "decoder, against held-out cells; e_distance as a share of the controls', in 50 components of training cells. "
        "Sampling and judging are not counted. 'Near' is within a tenth of the e_distance, or 0.005 of the pearson_delta. "
        f"'nan': not reached. CellFlow: {trained}, networks of 2 × {WIDTH}, all "
        "training cells; it is sampled at 10 steps of Heun like ours. scBIG: as the run's settings say, 90% of the "
        "training cells (it keeps the others to stop on; here it does not stop), the fit of the shift counted in. 'ema' and "
        "'params' are the averaged and the present parameters.",
    ]
    return rows, notes, {"versions": version("cellflow"), "curves": curves}


def sampling(screen: Screen, shared: str, work: Path, rounds: int, cells: int, few: int, trained: int) -> Outcome:
    """Cells per second from control latents to latents, on trained networks, compilation excluded."""
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        theirs = _cellflow(stack, screen, work)
        theirs.ask("start", batch=256, rate=RATE, **DEEP)
        theirs.ask("train", steps=trained)
        ours, _ = _ours(stack, screen, shared, [*_SAME, *_UNALIGNED])
        ours.ask("start", chunk=_CHUNK)
        ours.ask("train", calls=max(1, trained // _CHUNK))
        names = screen.watched[:6]
        many, some = np.resize(screen.z0, (cells, screen.z0.shape[1])), screen.z0[:few]
        asked = {
            "CellFlow, default (adaptive, each cell for itself)": (theirs, names[:2], some, {"solver": "default"}),
            "CellFlow's network, 10 steps of Heun": (theirs, names, many, {"solver": "heun"}),
            "scBIG, 10 steps of Heun": (ours, names, many, {}),
            "scBIG, decoded too": (ours, names, many, {"decode": True}),
        }
        for number in range(rounds):
            for kind, (worker, conditions, source, more) in asked.items():
                told = _samples(worker, screen, conditions, work, source, **more)[1]
                rates.setdefault(kind, []).append(told["cells"] / told["seconds"])
            _say(f"round {number + 1}: " + ", ".join(f"{kind} {each[-1]:.1f}" for kind, each in rates.items()))
    latent = statistics.median(rates["scBIG, 10 steps of Heun"])
    rows = [["method", "cells in the program", "cells/s (median)", "range", "scBIG over it"]]
    for kind, (_, conditions, source, _) in asked.items():
        middle, shape = statistics.median(rates[kind]), f"{len(conditions)} × {len(source)}"
        ratio = "" if kind.startswith("scBIG") else f"{latent / middle:.1f}"
        spread = f"{min(rates[kind]):.1f} to {max(rates[kind]):.1f}"
        rows.append([kind, shape, f"{middle:.1f}", spread, ratio])
    notes = [
        f"Networks as in the comparison of speed, trained for {trained} steps. CellFlow's default is Tsit5 at "
        "a tolerance of 1e-5, as its `predict` calls it; it is given few cells, since it is slow, and each of its programs "
        "ends when its slowest cell does. Its network under Heun runs over all cells and conditions in one program, "
        "which we wrote around it. Conditions × cells; results brought to the host. Decoding is by the run's "
        f"autoencoder ({screen.prepared.n_vars} genes).",
    ]
    return rows, notes, {"versions": version("cellflow"), "cells_per_s": rates}


def gears(screen: Screen, shared: str, work: Path, epochs: int, most: int) -> Outcome:
    """GEARS on the prepared screen, and all predictions at hand before the judge."""
    with ExitStack() as stack:
        worker = stack.enter_context(Worker("GEARS", interpreter("gears"), "benchmarks.peers.gears_adapter"))
        go, folder = Path(shared, "priors", "go_2024-04-25.gmt.gz").resolve(), (work / "gears").resolve()
        shutil.rmtree(folder, ignore_errors=True)
        about = worker.ask("load", run=str(screen.folder.resolve()), annotations=str(go), work=str(folder), most=most)
        trained = worker.ask("train", epochs=epochs)
        told = worker.ask("predict", out=str(folder / "means.npz"))
    with np.load(folder / "means.npz") as file:
        means = dict(zip(file["conditions"].tolist(), file["means"], strict=True))
        screen.effects("GEARS", means, file["control"]).write_h5ad(work / "effects GEARS.h5ad")
    found = {path.stem.split(" ", 1)[1]: ad.read_h5ad(path) for path in sorted(work.glob("*.h5ad"))}
    scores = evaluation.evaluate(found, screen.prepared, screen.split, ceiling_draws=0)
    rows = [["method", *_JUDGE]]
    for name in scores.methods:
        rows.append([name, *(f"{scores.value(name, metric):.3f}" for metric in _JUDGE)])
    rate = trained["cells"] / trained["training"]
    notes = [
        f"All test conditions, by the judge of `scbig evaluate`. GEARS: {_millions(about['network'])} parameters, {epochs} "
        f"epochs of {about['cells']} cells in {trained['seconds']:.0f} s, {rate:.0f} cells/s in training without the "
        f"evaluations that it makes after each epoch; {told['conditions']} of {about['tested']} test conditions, the "
        "others have no GO annotation. Its graph is made by its own code from GO annotations in the file that it would "
        "otherwise download. It gives mean profiles, so it has no distances between populations. Cells of scBIG and "
        f"CellFlow are those at the end of the comparison of quality, {_JUDGED} for each condition, from the same held-out "
        "controls.",
    ]
    record = {"versions": version("gears"), "about": about, "trained": trained, "predicted": told, "cells_per_s": rate}
    return rows, notes, record | {"scores": {name: dict(zip(_JUDGE, row[1:], strict=True)) for name, *row in rows[1:]}}
