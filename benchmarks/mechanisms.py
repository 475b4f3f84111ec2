"""Do shifts of attention and co-activation find what was planted? The simulated screen, whose truth is known.

python -m benchmarks.mechanisms --seeds 3             # a quarter of an hour on 2 cores
python -m benchmarks.mechanisms --seeds 1 --quick     # does it run?

Only stages up to the autoencoder are needed: the cells are real ones of the screen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.common import markdown, write
from scbig import config, stages
from scbig.analysis import permutation
from scbig.analysis.attention import HOW, received
from scbig.analysis.coactivation import coactivation, scores_without
from scbig.analysis.shift import shifts
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.simulate import SimConfig, save, simulate
from scbig.evaluation.statistics import bootstrap_weights, interval
from scbig.modules import Modules
from scbig.rng import generator
from scbig.run import Run
from scbig.training import assemble

MOVED, STILL, BOTH = 0.3, 0.03, 0.6  # |activity| of modules that moved, that did not, and of pairs that both moved far
ALPHA, SPLITS = 0.05, 20
PLAIN = "module mean"
WAYS = (*(f"attention, {how}" for how in HOW), PLAIN)
NUISANCES = ("depth+median", "depth+mean", "depth")
NAMES = {
    "power": "power", "false": "false calls", "regulator": "regulator called", "first": "regulator first", "auroc": "AUROC",
}  # fmt: skip
KINDS = ["both far", "both", "one", "neither"]


@dataclass(frozen=True)
class Screen:
    """A simulated screen with its modules, their planted activities, and what is measured of its cells."""

    adata: ad.AnnData
    modules: Modules
    activity: pd.DataFrame  # condition × found module
    home: dict[str, int]  # the found module of each perturbed gene's planted module
    values: dict[str, np.ndarray]
    scores: np.ndarray
    overlap: float
    seconds: float


def screen_of(folder: Path, seed: int, quick: bool) -> Screen:
    """Simulates, finds modules and trains the autoencoder, as far as that is not done; then measures every cell."""
    if not (folder / "simulated").exists():
        save(simulate(SimConfig.demo(seed)), folder / "simulated")
    settings = config.demo(folder)
    settings.seed = settings.split.seed = seed
    if quick:
        settings.pretrain.epochs = 2
    run = stages.execute(folder, settings, ("prepare", "cluster", "pretrain"))
    adata = ad.read_h5ad(run.path("prepared.h5ad"))
    modules = assemble.load_modules(run, adata.var_names)
    auto = assemble.load_autoencoder(run, settings, adata.var_names)
    values = {f"attention, {how}": received(auto, adata.X, how) for how in HOW}
    activity, home, overlap = planted(folder, adata, modules)
    values[PLAIN] = scores_without(adata, modules, tuple(home))
    return Screen(adata, modules, activity, home, values, scores_without(adata, modules), overlap, seconds_of(run))


def seconds_of(run: Run) -> float:
    return sum(stage["seconds"] for stage in run.provenance["stages"].values())


def planted(folder: Path, adata: ad.AnnData, modules: Modules) -> tuple[pd.DataFrame, dict[str, int], float]:
    """Planted activities of the modules found: the mean over their genes of those of the genes' planted modules."""
    truth = ad.read_h5ad(folder / "simulated" / "truth.h5ad")
    told = (
        pd.read_csv(folder / "simulated" / "modules.csv", keep_default_na=False).set_index("gene").loc[adata.var_names]
    )
    table = pd.crosstab(modules.module, told["module"].to_numpy()).to_numpy(float)
    part = table / table.sum(axis=1, keepdims=True)
    activity = pd.DataFrame(truth.obsm["module_activity"] @ part.T, index=truth.obs["condition"].astype(str))
    best = table.argmax(axis=0)  # the found module that holds most of each planted one
    perturbed = sorted({gene for name in set(adata.obs["condition"].astype(str)) for gene in genes_of(name)})
    home = {gene: int(best[told.loc[gene, "module"]]) for gene in perturbed}
    return activity, home, float(part.max(axis=1).mean())


def shift_table(screen: Screen, way: str, nuisance: str, permutations: int) -> pd.DataFrame:
    """Tested shifts of all modules in all conditions, beside what was planted."""
    columns, _ = permutation.nuisance_of(screen.adata.obs, screen.scores, nuisance)
    table, _, _ = shifts(screen.values[way], screen.adata.obs, nuisance=columns, permutations=permutations, draws=2)
    activity = screen.activity.loc[table["condition"]].to_numpy()
    size = table["effect"].abs()
    return table.assign(
        planted=np.abs(activity[np.arange(len(table)), table["module"]]),
        called=table["q"] < ALPHA,
        size=size,
        place=size.groupby(table["condition"]).rank(ascending=False, method="first"),
    )


def by_condition(table: pd.DataFrame, home: dict[str, int]) -> pd.DataFrame:
    """Counts of every condition, and of how many there are; shares are ratios of their sums."""
    rows = []
    for condition, own in table.groupby("condition"):
        genes = genes_of(condition)
        moved, still = (own["planted"] > MOVED).to_numpy(), (own["planted"] < STILL).to_numpy()
        homes = own.set_index("module").loc[[home[gene] for gene in genes]]
        either = moved | still
        area = auroc(own["size"].to_numpy()[either], moved[either])
        rows.append(
            {
                "condition": condition,
                "power": (own["called"][moved].sum(), moved.sum()),
                "false": (own["called"][still].sum(), still.sum()),
                "regulator": (homes["called"].sum(), len(genes)),
                "first": ((homes["place"] <= len(genes)).sum(), len(genes)),
                "auroc": (0.0 if np.isnan(area) else area, float(not np.isnan(area))),
            }
        )
    return pd.DataFrame(rows).set_index("condition")


def halves(screen: Screen, test: Callable[[pd.DataFrame, np.ndarray, int], pd.DataFrame], seed: int) -> np.ndarray:
    """Share of tests with p < α, and whether any is called, where half of the controls are called perturbed."""
    control = np.flatnonzero((screen.adata.obs["condition"] == CONTROL).to_numpy())
    rng, out = generator(seed, "halves of controls"), []
    for turn in range(SPLITS):
        labels = np.full(len(control), CONTROL, object)
        labels[rng.permutation(len(control))[: len(control) // 2]] = "other half"
        table = test(screen.adata.obs.iloc[control].assign(condition=labels), control, turn)
        out.append(((table["p"] < ALPHA).mean(), (table["q"] < ALPHA).any()))
    return np.array(out)


def shift_halves(screen: Screen, way: str, nuisance: str, permutations: int, seed: int) -> np.ndarray:
    columns, _ = permutation.nuisance_of(screen.adata.obs, screen.scores, nuisance)

    def test(obs, rows, turn):
        chance = {"permutations": permutations, "draws": 2, "seed": turn}
        return shifts(screen.values[way][rows], obs, nuisance=columns[rows], **chance)[0]

    return halves(screen, test, seed)


def pairs_of(screen: Screen, nuisance: str, permutations: int) -> pd.DataFrame:
    """Tested pairs of modules, by how many of the two were moved."""
    table, _ = coactivation(screen.adata, screen.modules, nuisance=nuisance, permutations=permutations, draws=2)
    activity, row = screen.activity.loc[table["condition"]].to_numpy(), np.arange(len(table))
    a, b = np.abs(activity[row, table["module_a"]]), np.abs(activity[row, table["module_b"]])
    least, most = np.minimum(a, b), np.maximum(a, b)
    found = [least > BOTH, least > MOVED, (most > MOVED) & (least < STILL), most < STILL]
    return table.assign(kind=np.select(found, KINDS, "between"), called=table["q"] < ALPHA)


def pair_halves(screen: Screen, nuisance: str, permutations: int, seed: int) -> np.ndarray:
    def test(obs, rows, turn):
        own = screen.adata[rows].copy()
        own.obs = obs
        chance = {"permutations": permutations, "draws": 2, "seed": turn}
        return coactivation(own, screen.modules, nuisance=nuisance, **chance)[0]

    return halves(screen, test, seed)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative; NaN without one of either."""
    from scipy.stats import rankdata

    n = int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def share(pairs: pd.Series) -> tuple[str, list[float]]:
    """A ratio of sums over conditions with a bootstrap 95% interval over conditions."""
    values = np.array(pairs.tolist(), float)
    (mean,), (low,), (high,) = interval(values[:, :1], bootstrap_weights(len(values)), values[:, 1:])
    return f"{mean:.2f} ({low:.2f} … {high:.2f})", [float(mean), float(low), float(high)]


def less(first: pd.Series, second: pd.Series) -> str:
    """The paired difference of two such ratios over the same conditions."""
    a, b = np.array(first.tolist(), float), np.array(second.tolist(), float)
    values, over = np.stack([a[:, 0] - b[:, 0]], axis=1), a[:, 1:]
    (mean,), (low,), (high,) = interval(values, bootstrap_weights(len(values)), over)
    return f"{mean:+.2f} ({low:+.2f} … {high:+.2f}){' *' if low > 0 or high < 0 else ''}"


def chance(values: np.ndarray) -> str:
    """Mean share of tests below α, with a 95% interval over splits, and share of splits with a call."""
    (mean, called), (low, _), (high, _) = interval(values, bootstrap_weights(len(values)))
    return f"{mean:.3f} ({low:.3f} … {high:.3f}); {called:.2f}"


def shift_rows(screens: list[Screen], permutations: int) -> tuple[list[list[str]], list[list[str]], dict]:
    """The table of shifts, that of differences to the plain mean, and the numbers of both."""
    rows = [["what shifts", "regressed out", *NAMES.values(), "halves of controls"]]
    versus, record = [["difference", *NAMES.values()]], {}
    for nuisance in NUISANCES:
        counts = {}
        for way in WAYS:
            each = [by_condition(shift_table(screen, way, nuisance, permutations), screen.home) for screen in screens]
            counts[way] = pd.concat(each, ignore_index=True)
            split = [shift_halves(screen, way, nuisance, permutations, seed) for seed, screen in enumerate(screens)]
            told = {name: share(counts[way][name]) for name in NAMES}
            rows.append([way, nuisance, *(text for text, _ in told.values()), chance(np.concatenate(split))])
            record[f"{way}, {nuisance}"] = {name: value for name, (_, value) in told.items()} | {
                "halves": np.concatenate(split).mean(axis=0).tolist()
            }
        if nuisance == NUISANCES[0]:
            for way in WAYS[:-1]:
                versus.append([f"{way} less {PLAIN}", *(less(counts[way][n], counts[PLAIN][n]) for n in NAMES)])
    return rows, versus, record


def pair_rows(screens: list[Screen], permutations: int) -> tuple[list[list[str]], dict]:
    """The table of co-activation, and its numbers."""
    rows, record = [["regressed out", *KINDS, "halves of controls"]], {}
    for nuisance in NUISANCES:
        tables = [pairs_of(screen, nuisance, permutations) for screen in screens]
        table = pd.concat(t.assign(condition=t["condition"] + f"@{place}") for place, t in enumerate(tables))
        split = [pair_halves(screen, nuisance, permutations, seed) for seed, screen in enumerate(screens)]
        told = {}
        for kind in KINDS:
            own = table[table["kind"] == kind].groupby("condition")["called"].agg(["sum", "size"])
            text, values = share(pd.Series([tuple(pair) for pair in own.to_numpy()]))
            told[kind] = f"{text}, n = {int(own['size'].sum())}", values
        rows.append([nuisance, *(text for text, _ in told.values()), chance(np.concatenate(split))])
        record[nuisance] = {kind: values for kind, (_, values) in told.items()} | {
            "halves": np.concatenate(split).mean(axis=0).tolist()
        }
    return rows, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="hardly trained, few permutations")
    parser.add_argument("--runs", default="runs/bench_mechanisms")
    parser.add_argument("--out", default="benchmarks/results/mechanisms")
    given = parser.parse_args()
    permutations = 50 if given.quick else 200
    screens = [screen_of(Path(given.runs, str(seed)), seed, given.quick) for seed in range(given.seeds)]
    begun = time.perf_counter()
    shifted, versus, shift_record = shift_rows(screens, permutations)
    paired, pair_record = pair_rows(screens, permutations)
    seconds = time.perf_counter() - begun
    n_conditions = sum(len(set(screen.adata.obs["condition"].astype(str))) - 1 for screen in screens)
    notes = [
        f"Real cells of {given.seeds} simulated screens (`SimConfig.demo`), {n_conditions} perturbed conditions; modules as "
        f"found by GRC ({np.mean([screen.overlap for screen in screens]):.0%} of a found module's genes are of one planted "
        "module). A module's planted activity is the mean over its genes. Power: of modules with planted |activity| > "
        f"{MOVED}, the share called at q < {ALPHA}. False calls: of those with |activity| < {STILL}. Regulator called: of "
        "the perturbed genes, the share whose planted module is called; first: is among the modules of largest |effect|, "
        "as many as genes are perturbed. AUROC: of |effect|, moved against unmoved modules of the same condition. Means "
        "and bootstrap 95% intervals over conditions. Halves of controls: share of tests with p < "
        f"{ALPHA} where half of the controls are called perturbed, with a 95% interval over {SPLITS * given.seeds} such "
        "splits; then the share of splits in which anything is called.",
        "The module mean leaves perturbed genes out; the encoder sees them. The truth is the planted activity: that an "
        "unmoved module's share of the library falls where another rises is counted as a false call.",
        f"Differences with {NUISANCES[0]} regressed out, paired over conditions (* where the interval excludes zero):",
        markdown(versus),
        f"Co-activation: share of pairs of modules called at q < {ALPHA}. Both far: the lesser of the two |activities| > "
        f"{BOTH}; both: > {MOVED}; one: one > {MOVED}, the other < {STILL}; neither: both < {STILL}. Pairs that both moved "
        "vary together because a perturbation works better in some cells than in others.",
        markdown(paired),
        f"Stages took {', '.join(f'{screen.seconds:.0f}' for screen in screens)} s, tests {seconds:.0f} s. Simulated cells.",
    ]
    command = f"python -m benchmarks.mechanisms --seeds {given.seeds}" + (" --quick" if given.quick else "")
    record = {"shifts": shift_record, "coactivation": pair_record}
    write(given.out, "Do attention and co-activation find what was planted?", command, shifted, notes, record)


if __name__ == "__main__":
    main()
