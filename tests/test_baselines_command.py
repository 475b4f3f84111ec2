"""``scbig baselines`` as a user's shell runs it, on a tiny simulated screen and on a table of effects."""

import json
import shlex
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig import baselines, cli, config, stages
from scbig.data.splits import Split
from scbig.errors import InputError
from scbig.files import digest

PLAIN = ("control", "mean", "additive", "low_rank", "matching_mean", "shuffled")
QUICK = "--only=control,mean,additive,low_rank,matching_mean,shuffled,knn,linear,elastic_net,scgen"


@pytest.fixture(scope="module")
def prepared(tiny_screen, tiny_settings, tmp_path_factory):
    """The tiny screen, prepared: cells in log-expression with their split."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    settings = tiny_settings()
    stages.execute(folder, settings, ("prepare",))
    return folder


@pytest.fixture(scope="module")
def priors(tiny_screen, tmp_path_factory):
    """The screen's embeddings, beside files that are none."""
    folder = tmp_path_factory.mktemp("priors")
    for name in ("semantic.npz", "noisy.npz"):
        shutil.copy(tiny_screen / "priors" / name, folder / f"emb_{name}")
    (folder / "notes.csv").write_text("gene,text\nA,hello\nB,there\n")
    (folder / "readme.md").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of effects of 24 singles and 12 pairs, with an embedding that tells of them."""
    rng = np.random.default_rng(0)
    genes = [f"G{i:02}" for i in range(24)]
    single = {g: rng.normal(size=50) for g in genes}
    pairs = {
        f"{a}+{b}": single[a] + single[b] + 0.2 * rng.normal(size=50)
        for a, b in zip(genes[::2], genes[1::2], strict=True)
    }
    effects = single | pairs
    adata = ad.AnnData(
        np.stack(list(effects.values())).astype(np.float32),
        obs=pd.DataFrame({"condition": list(effects)}, index=list(effects)),
        var=pd.DataFrame(index=[f"m{i}" for i in range(50)]),
    )
    adata.uns["scbig"] = {"schema": 1, "kind": "effects"}
    folder = tmp_path_factory.mktemp("effects")
    adata.write_h5ad(folder / "effects.h5ad")
    vectors = np.stack(list(single.values())).astype(np.float32)[:, :6]
    (folder / "priors").mkdir()
    np.savez(folder / "priors" / "emb_made.npz", genes=np.array(genes), vectors=vectors)
    return folder


@pytest.fixture
def call(capsys):
    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.mark.slow
def test_cells_from_end_to_end(shell, prepared, priors, tmp_path):
    out = tmp_path / "fitted"
    done = shell(
        "baselines", "--data", prepared / "prepared.h5ad", "--split", prepared / "split.csv", "--out", out,
        "--priors", priors, QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device: cpu")
    record = json.loads((out / "baselines.json").read_text())
    sources = ("semantic", "noisy", "all")
    names = {*PLAIN, "scgen", "linear", *(f"{b}-{s}" for b in ("linear", "knn", "elastic_net") for s in sources)}
    assert set(record["baselines"]) | set(record["not_run"]) == names
    assert {p.stem for p in out.glob("*.h5ad")} == set(record["baselines"]) >= {*PLAIN, "scgen"}
    assert "notes.csv" in record["not_embeddings"] and [r[0] for r in record["embeddings"][1:]] == ["noisy", "semantic"]
    assert any(line.split()[:1] == ["semantic"] for line in lines)
    split = Split.load(out / "split.csv")
    assert split.sha256 == Split.load(prepared / "split.csv").sha256 == record["split"]["sha256"]
    for name in record["baselines"]:
        x = ad.read_h5ad(out / f"{name}.h5ad")
        assert x.uns["scbig"]["kind"] == "effects" and x.uns["scbig"]["method"] == name
        assert set(x.obs["condition"]) <= set(split.conditions("test")) and np.isfinite(x.X).all()
    screen = ad.read_h5ad(prepared / "prepared.h5ad")
    expected = baselines.fit("additive", baselines.training_data(screen, split))
    x = ad.read_h5ad(out / "additive.h5ad")
    np.testing.assert_array_equal(x.X, expected.predict(list(x.obs["condition"]), list(x.obs["context"])))
    # The last line is the command to run next, and it runs.
    words = shlex.split(lines[-1])
    assert words[:2] == ["scbig", "evaluate"] and words.count("--predictions") == len(record["baselines"])
    judged = shell(*words[1:])
    assert judged.returncode == 0, judged.stderr
    assert (out / "judged" / "summary.json").is_file()


@pytest.mark.slow
def test_effects_by_a_rule_with_a_search(shell, table, tmp_path):
    out = tmp_path / "fitted"
    done = shell(
        "baselines", "--data", table / "effects.h5ad", "--split", "holdout", "--out", out, "--priors",
        table / "priors", "--only", "mean,knn,kernel_ridge,elastic_net,scgen,additive", "--trials", 3,
        "--config.split.n_test=5", "--config.split.seed=7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "baselines.json").read_text())
    assert set(record["baselines"]) == {"mean", "knn-made", "kernel_ridge-made", "elastic_net-made"}
    assert "cells" in record["not_run"]["scgen"] and "single perturbation" in record["not_run"]["additive"]
    assert "scgen: not run: " in done.stdout
    study = pd.read_csv(out / "elastic_net-made_study.csv")
    assert len(study) == 3 and {"alpha", "mixture", "value"} <= set(study)
    assert record["baselines"]["elastic_net-made"]["options"]["trials"] == 3
    split = Split.load(out / "split.csv")
    assert split.rule == "holdout" and split.seed == 7
    assert len({g for c in split.conditions("test", "single") for g in c.split("+")}) == 5
    words = shlex.split(done.stdout.splitlines()[-1])
    assert not [w for w in words if w.startswith("--config.split")]


def test_cells_are_written_when_asked_for(call, prepared, tmp_path):
    given = ("--data", prepared / "prepared.h5ad", "--split", prepared / "split.csv", "--out", tmp_path / "x")
    code, _, err = call("baselines", *given, "--only", "additive", "--cells", 20)
    assert code == 0, err
    x = ad.read_h5ad(tmp_path / "x" / "additive.h5ad")
    assert x.uns["scbig"]["kind"] == "cells" and x.obs["condition"].value_counts().max() <= 20
    told = ad.read_h5ad(prepared / "prepared.h5ad").uns["scbig"]
    assert x.uns["scbig"]["target_sum"] == told["target_sum"]
    # A second call refuses, and with --force replaces.
    before = digest(tmp_path / "x")
    code, _, err = call("baselines", *given, "--only", "mean")
    assert code == 2 and "--force" in err and digest(tmp_path / "x") == before
    assert call("baselines", *given, "--only", "mean", "--force")[0] == 0
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"mean.h5ad", "split.csv", "baselines.json"}


def mistakes(prepared, table, tmp_path):
    """Arguments that are wrong, and what the one line must name."""
    empty = tmp_path / "empty"
    empty.mkdir()
    np.savez(empty / "emb_other.npz", genes=np.array(["Q1", "Q2"]), vectors=np.eye(2, dtype=np.float32))
    leaking = tmp_path / "leaking.csv"
    text = (prepared / "split.csv").read_text()
    leaking.write_text(text.replace(",train,", ",test,", 1))
    cells = {"--data": prepared / "prepared.h5ad", "--split": prepared / "split.csv"}
    effects = {"--data": table / "effects.h5ad", "--split": "additive"}
    return {
        "unknown baseline": (cells | {"--only": "magic,mean"}, ["magic", "additive", "kernel_ridge"]),
        "unknown variant": (cells | {"--only": "knn-moon"}, ["knn-moon", "additive"]),
        "nothing can run": (cells | {"--only": "knn"}, ["knn", "--priors"]),
        "absent folder": (cells | {"--priors": tmp_path / "absent"}, ["absent", "--priors"]),
        "no overlap": (cells | {"--priors": empty}, ["no embedding", "empty", "emb_other.npz", "Q1"]),
        "no split": (cells | {"--split": "somehow"}, ["somehow", "additive", "holdout"]),
        "edited split": (cells | {"--split": leaking}, ["leaking.csv", "edited"]),
        "other data": (effects | {"--split": prepared / "split.csv"}, ["says nothing about", "G00"]),
        "cells of effects": (effects | {"--cells": 10}, ["--cells", "effects.h5ad"]),
        "negative": (cells | {"--trials": -1}, ["--trials -1"]),
        "no data": (cells | {"--data": tmp_path / "absent.h5ad"}, ["absent.h5ad"]),
        "setting": (cells | {"--config.split.n_tests": 3}, ["split.n_tests", "n_test"]),
    }


@pytest.mark.parametrize(
    "what",
    ["unknown baseline", "unknown variant", "nothing can run", "absent folder", "no overlap", "no split", "edited split",
     "other data", "cells of effects", "negative", "no data", "setting"],
)  # fmt: skip
def test_mistakes_are_told_in_one_line_and_nothing_is_written(call, prepared, table, tmp_path, what):
    given, wanted = mistakes(prepared, table, tmp_path)[what]
    out = tmp_path / "out"
    code, _, err = call("baselines", *[f"{k}={v}" for k, v in given.items()], "--out", out)
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("error: ")
    assert [each for each in wanted if each not in line] == []
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_leaking_split_is_refused(call, table, tmp_path):
    """A table of the user's own, as a holdout with a pair of a test gene in training."""
    conditions = sorted(ad.read_h5ad(table / "effects.h5ad").obs["condition"].astype(str))
    rows = [(c, "test" if c == "G00" else "train", "single" if c == "G00" else "") for c in conditions]
    split = Split("leaky", "holdout", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    split.save(tmp_path / "leaky.csv")
    given = ("--data", table / "effects.h5ad", "--split", tmp_path / "leaky.csv", "--out", tmp_path / "o")
    code, _, err = call("baselines", *given)
    assert code == 2 and "leak" in err and "G00" in err and not (tmp_path / "o").exists()


def test_a_folder_of_something_else_is_not_replaced(call, prepared, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    given = ("--data", prepared / "prepared.h5ad", "--split", prepared / "split.csv", "--out", tmp_path / "mine")
    code, _, err = call("baselines", *given, "--only", "mean", "--force")
    assert code == 2 and "not written by this command" in err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_trials_without_optuna(call, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("scbig.stages.baselines.find_spec", lambda name: None)
    given = ("--data", prepared / "prepared.h5ad", "--split", prepared / "split.csv", "--out", tmp_path / "x")
    code, _, err = call("baselines", *given, "--trials", 3)
    assert code == 2 and "scbig[tune]" in err and not (tmp_path / "x").exists()


def test_every_baseline_has_a_place_in_the_plan():
    variants, not_run = stages.baselines.plan((), ())
    assert {b for b, _ in variants.values()} | set(not_run) == set(baselines.REGISTRY)
    variants, not_run = stages.baselines.plan((), ("one",))
    assert not not_run and "knn-one" in variants and "knn-all" not in variants
    variants, _ = stages.baselines.plan(("fusion-all", "mean"), ("one", "two"))
    assert set(variants) == {"mean", "fusion-all"} and variants["fusion-all"][1] == {"embedding": ("one", "two")}


def test_one_that_does_not_suit_the_data_does_not_cost_the_others(prepared, tmp_path, monkeypatch):
    def fit(data, **options):
        raise InputError("not on a Saturday")

    monkeypatch.setitem(baselines.REGISTRY, "low_rank", fit)
    task = stages.Task(
        str(prepared / "prepared.h5ad"), str(prepared / "split.csv"), str(tmp_path / "x"), ("mean", "low_rank")
    )
    record = stages.fit_baselines(task, config.default())
    assert record["not_run"] == {"low_rank": "not on a Saturday"} and list(record["baselines"]) == ["mean"]


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["baselines", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80


def test_latents_of_a_run(call, tiny_run, tmp_path):
    data, split, out = tiny_run / "prepared.h5ad", tiny_run / "split.csv", tmp_path / "fitted"
    given = ("--data", data, "--split", split, "--only", "scgen,knockout")
    code, told, err = call("baselines", *given, "--out", out, "--run", tiny_run)
    assert code == 0 and not err and told.count("latent: autoencoder") == 2
    assert call("baselines", *given, "--out", tmp_path / "components")[0] == 0
    two = [ad.read_h5ad(folder / "scgen.h5ad").X for folder in (out, tmp_path / "components")]
    assert np.isfinite(two[0]).all() and not np.allclose(*two)


def test_a_run_that_does_not_fit_is_refused(call, tiny_run, prepared, table, tmp_path):
    data, out = ("--data", tiny_run / "prepared.h5ad"), ("--out", tmp_path / "none", "--only", "scgen")
    code, _, err = call("baselines", *data, "--split", "random", *out, "--run", tiny_run)
    assert code == 2 and "was trained on another split" in err and "split.csv" in err
    code, _, err = call("baselines", *data, "--split", tiny_run / "split.csv", *out, "--run", prepared)
    assert code == 2 and "no trained autoencoder in" in err and "scbig pretrain" in err
    effects = ("--data", table / "effects.h5ad", "--split", "random")
    code, _, err = call("baselines", *effects, *out, "--run", tiny_run)
    assert code == 2 and "--run needs a screen of cells" in err
    assert not (tmp_path / "none").exists()
