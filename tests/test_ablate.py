"""Tables of variants: their files, what their runs share, and the numbers in the table."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from scbig import cli, config, evaluation, stages
from scbig.data.simulate import SimConfig, save, simulate
from scbig.errors import InputError
from scbig.run import STAGES, Run
from scbig.stages import ablate, ablation_table, forks
from scbig.stages.ablation_measures import MEASURES, measure
from scbig.stages.sweep import Outcome

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "ablations").glob("*.py"))
NAMES = tuple(STAGES)


def each_file():
    return pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@each_file()
@pytest.mark.parametrize("quick", [False, True])
def test_every_table_of_the_paper_expands_to_settings_that_are_real(file, quick, tmp_path):
    table = ablate.read(str(file))
    members = ablate.expand(table, tmp_path, quick=quick)
    assert len(members) == len(table.variants) * (2 if quick else 3) and len(table.variants) > 1
    assert len({name for name, _, _ in members}) == len(members) and list(tmp_path.iterdir()) == []
    one = members[1][2]
    assert (one.seed, one.split.seed) == (1, 1) and one.data.path.startswith(str(tmp_path))
    first = next(iter(table.variants))
    assert members[0][1] == {"variant": first, "seed": "0"}
    # Unless it says so, a table is about what the anchor would hide.
    anchored = [varied["variant"] for _, varied, settings in members if settings.anchor.method]
    assert all("anchored" in name for name in anchored)


def test_there_is_a_table_for_each_of_the_paper():
    assert {file.stem for file in FILES} == {
        "clustering_encoder", "clustering_priors", "losses", "weights", "condition_embedding", "modules_inducing", "cost",
        "genes", "pooling", "cluster_embedding", "pertadapt",
    }  # fmt: skip


def test_runs_share_the_stages_whose_settings_agree(tmp_path):
    def shared(file, changes=()):
        """Per seed, how many different outputs of each stage the variants of a table need."""
        members = ablate.expand(ablate.read(str(ROOT / f"configs/ablations/{file}.py")), tmp_path, 1, changes=changes)
        settings = [each for _, _, each in members]
        depth = np.array([[forks.common(a, b) for b in settings] for a in settings])
        return [len({tuple(row) for row in depth > stage}) for stage in range(4)]

    assert shared("losses") == [1, 1, 1, 5]
    assert shared("condition_embedding") == [1, 1, 1, 6]  # sources of conditions play no part before stage 2
    assert shared("pooling") == [1, 1, 4, 4]
    assert shared("clustering_encoder") == [1, 4, 12, 12]
    assert shared("genes") == [3, 3, 3, 3]


SMALL = """
from pathlib import Path

from scbig import config

TITLE = "Two losses"
{rest}


def get_config():
    return config.read_json(Path("{settings}"))
"""


@pytest.fixture
def file(tiny_settings, tmp_path):
    """Writes a table on the tiny screen."""

    def write(rest):
        kept = tmp_path / "settings.json"
        settings = tiny_settings()
        settings.anchor.method = ""
        settings.evaluation.baselines, settings.evaluation.ceiling_draws = ("control", "additive"), 0
        kept.write_text(config.as_json(settings), encoding="utf-8")
        made = tmp_path / "table.py"
        made.write_text(SMALL.format(rest=rest, settings=kept), encoding="utf-8")
        return made

    return write


@pytest.mark.parametrize(
    ("rest", "more", "says"),
    [
        ("", (), "has neither VARIANTS nor a function variants()"),
        ("VARIANTS = {}", (), "VARIANTS is empty"),
        ('VARIANTS = {"a": "flow.sigma=1.0"}', (), "VARIANTS must hold lists of changes"),
        ('VARIANTS = {"a": [], "b": ["flow.stpes=3"]}', (), "variant b of table: no setting flow.stpes; did you mean"),
        ('VARIANTS = {"a": [], "b": ["flow.steps=many"]}', (), "variant b of table: --config.flow.steps=many: int"),
        ('VARIANTS = {"a": [], "b": ["flow.steps=100"]}', (), "variants a and b of table are the same settings"),
        ('VARIANTS = {"a b": [], "a_b": ["flow.steps=50"]}', (), "variant a_b of table cannot be told from a b"),
        ('VARIANTS = {"a": [], "b": ["seed=3"]}', (), "variant b sets seed: seeds are counted by SEEDS or --seeds"),
        ('VARIANTS = {"a": [], "b": ["flow.steps=50"]}', ("--config.flow.steps=60",), "is what variant b sets"),
        ('VARIANTS = {"a": []}\nMETRICS = ("person",)', (), "METRICS names person; there are"),
        ('VARIANTS = {"a": []}\nSEEDS = 0', (), "SEEDS = 0 must be a whole number, 1 or more"),
        ('VARIANTS = {"a": []', (), "table.py, line 7: '{' was never closed"),
        ('VARIANTS = {"a": []}', ("--seeds", "-1"), "--seeds -1 is negative"),
    ],
)
def test_mistakes_in_a_table_are_told_in_a_line_before_anything_is_run(rest, more, says, file, tmp_path, capsys):
    code = cli.main(["ablate", str(file(rest)), "--workdir", str(tmp_path / "w"), *more])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and says in line and not (tmp_path / "w").exists()


def test_a_table_that_is_not_there(tmp_path, capsys):
    assert cli.main(["ablate", str(tmp_path / "none.py")]) == 2
    assert "no configuration file" in capsys.readouterr().err


def test_variants_may_be_a_function(file):
    table = ablate.read(str(file('def variants():\n    return {"a": [], "b": ("flow.sigma=0.1",)}')))
    assert table.variants == {"a": (), "b": ("flow.sigma=0.1",)} and table.seeds == 3


def test_intervals_over_seeds_are_those_of_a_t_test():
    values = np.array([0.4, 0.5, 0.7, np.nan])
    found = ablation_table.over_seeds(values)
    wanted = ttest_1samp(values[:3], 0.0).confidence_interval(0.95)
    assert (found.mean, found.n) == (pytest.approx(values[:3].mean()), 3)
    assert (found.low, found.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high)) and found.real
    one = ablation_table.over_seeds(values[:1])
    assert one.n == 1 and np.isnan(one.low) and not one.real
    assert ablation_table.over_seeds(np.array([])).n == 0


def test_differences_are_paired_by_seed(tmp_path):
    def outcome(variant, seed, value, state="failed"):
        scores = {"explained": value} if value is not None else {}
        return Outcome(f"{variant}/{seed}", {"variant": variant, "seed": seed}, state, 0.0, scores)

    # Seeds differ a lot and variants by the same little: only pairs can tell.
    outcomes = [
        outcome("a", "0", 1.0), outcome("a", "1", 5.0), outcome("a", "2", 9.0), outcome("b", "0", 1.10),
        outcome("b", "1", 5.11), outcome("b", "2", 9.09), outcome("c", "0", 2.0), outcome("c", "1", None),
        outcome("c", "2", None),
    ]  # fmt: skip
    found = ablation_table.compare(outcomes, tmp_path, ("explained",))
    gap = found.differences["b"]["explained"]
    assert gap.mean == pytest.approx(0.1) and gap.real and gap.n == 3
    assert not found.values["a"]["explained"].real and set(found.differences) == {"b", "c"}
    alone = found.differences["c"]["explained"]
    assert (alone.mean, alone.n) == (1.0, 1) and not alone.real


def test_runs_of_a_taken_over_stage_are_runs_like_any_other(tiny_run, tiny_settings, tmp_path):
    settings = tiny_settings()
    settings.flow.sigma, settings.priors.condition = 0.1, ("semantic.npz",)
    files, folder = forks.Files(), tmp_path / "fork"
    forks.share(folder, settings, [(tiny_run, tiny_settings())], files)
    run = Run(folder)
    assert forks.finished(run, settings) == NAMES.index("train")
    assert set(run.provenance["stages"]) == {"prepare", "cluster", "pretrain"}
    run.require(("prepare", "cluster", "pretrain"))  # by their hashes
    for name, record in run.provenance["stages"].items():
        assert record["finished"] == Run(tiny_run).provenance["stages"][name]["finished"]
        assert record["taken_from"] == str(tiny_run)
    assert os.path.samefile(folder / "prepared.h5ad", tiny_run / "prepared.h5ad")
    assert {json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()} == {"pretrain"}
    # Other settings of an early stage, other files: nothing that depends on them is taken.
    settings.modules.n_modules = 4
    forks.share(tmp_path / "other", settings, [(tiny_run, tiny_settings())], files)
    assert set(Run(tmp_path / "other").provenance["stages"]) == {"prepare"}
    with pytest.raises(InputError, match="cannot go on from .*: stage cluster"):
        forks.fork(tiny_run, tmp_path / "third", ["modules.n_modules=4"])


def test_a_run_whose_files_have_changed_gives_nothing(copy_of_run, tiny_settings, tmp_path):
    settings = tiny_settings()
    priors = shutil.copytree(settings.priors.dir, tmp_path / "priors")
    settings.priors.dir = str(priors)
    before = config.read_json(copy_of_run / "config.json")
    before.priors.dir = str(priors)
    run = Run(copy_of_run)
    record = run.provenance
    for stage in ("cluster", "train"):
        record["stages"][stage]["settings"]["priors"]["dir"] = str(priors)
    run._write(record)
    assert forks.finished(run, before) == len(NAMES)
    (priors / "pathways.gmt").write_text("X\tnone\tG0001\tG0002\n")
    assert forks.finished(run, before) == 1


# What is least like the rest of its table, and how far it is to be run.
UNUSUAL = {
    "clustering_encoder": {"kmeans, transformer": "pretrain", "random, mlp": "pretrain"},
    "clustering_priors": {"soft assignment": "pretrain"},
    "losses": {"neither": "train"},
    "weights": {"both 1": "train"},
    "condition_embedding": {"identity": "train"},
    "modules_inducing": {"64 modules, 2 points": "pretrain"},
    "cost": {"1 module": "pretrain"},
    "genes": {"60 most variable": "pretrain"},
    "pooling": {"attention": "pretrain", "pma": "pretrain"},
    "pertadapt": {"alone": "train"},
}
TINY = [
    "gcae.width=16", "gcae.heads=2", "gcae.latent=8", "gcae.readout=mean", "pretrain.epochs=1", "pretrain.batch=256",
    "condition.width=16", "velocity.width=32", "velocity.depth=1", "flow.steps=20", "flow.chunk=10",
    "flow.evaluate_every=20", "flow.shift_steps=10", "flow.conditions=4", "flow.cells=8", "flow.align_cells=8",
    "flow.watch_conditions=4", "flow.watch_cells=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all tables are tried, with the screen that `--quick` would simulate, in small."""
    folder = tmp_path_factory.mktemp("tables")
    size = SimConfig(
        n_cells=600, n_genes=160, n_modules=8, n_singles=8, n_doubles=20, ppi_density=0.04, control_share=0.2, truth_cells=64
    )  # fmt: skip
    save(simulate(size), folder / "simulated" / "quick0")
    return folder, []


@pytest.mark.slow
@each_file()
def test_variants_of_every_table_make_modules_and_the_unusual_ones_train(file, place):
    folder, tried = place
    table = ablate.read(str(file))
    varied = {each.partition("=")[0] for changes in table.variants.values() for each in changes}
    changes = [each for each in TINY if each.partition("=")[0] not in varied]
    if file.stem == "condition_embedding":
        changes += ["flow.lambda_corr=0.0", "flow.lambda_path=0.0"]  # which other tables compile
    files = forks.Files()
    for _, about, settings in ablate.expand(table, folder, 1, True, [*changes, "split.n_test=4", "split.n_val=2"]):
        until = UNUSUAL.get(file.stem, {}).get(about["variant"], "cluster")
        asked = NAMES[: NAMES.index(until) + 1]
        run = folder / f"{len(tried)}"
        forks.share(run, settings, tried, files)
        tried.append((run, settings))
        done = stages.execute(run, settings, asked).provenance["stages"]
        assert set(asked) <= set(done)
    assert UNUSUAL.get(file.stem, {}).keys() <= table.variants.keys()


def told(folder):
    with open(folder / "ablation.csv", newline="", encoding="utf-8") as handle:
        return {row["run"]: row for row in csv.DictReader(handle)}


def cells(text, heading):
    """A table of a Markdown page: rows by their first cell, of the first table after a heading."""
    lines = [line for line in text.split(heading, 1)[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    end = next((i for i, row in enumerate(rows[2:], 2) if row[0] == "variant"), len(rows))
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:end]}


@pytest.mark.slow
def test_a_table_is_made_and_made_again(tiny_run, file, shell, tmp_path):
    """After ``tiny_run``, whose programs the runs find compiled."""
    table = file('VARIANTS = {"both": [], "neither": ["flow.lambda_corr=0.0", "flow.lambda_path=0.0"]}\nSEEDS = 2')
    folder = tmp_path / "w"
    first = shell("ablate", table, "--workdir", folder, "--jobs", 2)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = told(folder)
    assert set(rows) == {f"{variant}/seed{seed}" for variant in ("both", "neither") for seed in (0, 1)}
    # One autoencoder per seed, of whichever run came first.
    runs = {name: Run(folder / name) for name in rows}
    for seed in (0, 1):
        pair = [runs[f"{variant}/seed{seed}"].provenance["stages"] for variant in ("both", "neither")]
        assert pair[0]["pretrain"]["finished"] == pair[1]["pretrain"]["finished"]
        assert sum("taken_from" in each["pretrain"] for each in pair) == 1
        assert all("taken_from" not in each["train"] for each in pair)
    assert len({each.provenance["stages"]["pretrain"]["outputs"]["gcae/params"] for each in runs.values()}) == 2
    # The numbers are the judge's.
    page = (folder / "ablation.md").read_text(encoding="utf-8")
    means, gaps = cells(page, "# Two losses"), cells(page, "## Difference to both")
    scores = {name: evaluation.load(run.path("evaluation")) for name, run in runs.items()}
    value = {name: each.value("scBIG", "pearson_delta", "all") for name, each in scores.items()}
    for name, row in rows.items():
        assert row["state"] == "done" and float(row["pearson_delta"]) == pytest.approx(value[name])
    of = {variant: np.array([value[f"{variant}/seed{seed}"] for seed in (0, 1)]) for variant in ("both", "neither")}
    assert means["both"]["pearson_delta"].startswith(f"{of['both'].mean():.3f} [")
    gap = ablation_table.over_seeds(of["neither"] - of["both"])
    shown = gaps["neither"]["pearson_delta"].replace("\\*", "")
    assert [float(each.strip("[],")) for each in shown.split()] == pytest.approx(
        [gap.mean, gap.low, gap.high], abs=6e-4
    )
    assert f"`scbig ablate {table} --workdir {folder}`" in page and "2 seeds" in page
    # A grid that has grown, one run whose process dies: what is done stays, the rest is told of.
    before = {name: run.path("provenance.json").read_bytes() for name, run in runs.items()}
    grown = table.read_text().replace('"neither"', '"lost": ["priors.pathways=none.gmt"], "neither"')
    table.write_text(grown, encoding="utf-8")
    again = shell("ablate", table, "--workdir", folder, "--seeds", 1)
    assert again.returncode == 2
    (line,) = again.stderr.splitlines()
    assert line.startswith("error: 1 of 3 runs failed: lost/seed0;")
    assert "ablate: both/seed0: done before" in again.stdout and "one seed: no interval" in again.stdout
    assert {name: run.path("provenance.json").read_bytes() for name, run in runs.items()} == before
    assert (
        "none.gmt" in told(folder)["lost/seed0"]["reason"] and "no prior file" in (folder / "ablation.md").read_text()
    )
    # Other settings in the same folder are refused before anything is run.
    other = shell("ablate", table, "--workdir", folder, "--config.flow.sigma=0.2")
    (line,) = other.stderr.splitlines()
    assert other.returncode == 2 and "flow.sigma=0.05 (now 0.2)" in line and "take another --workdir" in line


@pytest.mark.slow
def test_what_is_measured_of_a_run(tiny_run, tiny_settings):
    from scbig.training import assemble

    found = measure(Run(tiny_run), tuple(MEASURES))
    assert found.keys() == MEASURES.keys()
    run, settings = Run(tiny_run), tiny_settings()
    genes = pd.read_csv(run.path("modules.csv"))["gene"]
    auto = assemble.load_autoencoder(run, settings, genes)
    import jax

    size = sum(leaf.size for leaf in jax.tree.leaves(auto.params))
    assert found["parameters_autoencoder"] == size < found["parameters"]
    record = run.provenance["stages"]["pretrain"]
    assert found["pretrain_seconds"] == record["seconds"] and found["explained"] == record["remarks"]["explained"]
    assert 0 < found["pretrain_ms"] < 1000 * record["seconds"]
