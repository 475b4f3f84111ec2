"""The command ``scbig`` as a user's shell runs it: real processes, real files."""

import json
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from scbig import cli, commands
from scbig.data.conditions import CONTROL, genes_of
from scbig.files import digest
from scbig.run import STAGES, Run

pytestmark = pytest.mark.slow

COMMANDS = (
    "run", "prepare", "cluster", "pretrain", "train", "sample", "evaluate", "report", "baselines", "demo", "simulate",
    "fetch", "sweep", "bench",
)  # fmt: skip
METHODS = ("scBIG", "control", "mean", "additive", "low_rank", "linear")


def one_line(text):
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def call(capsys):
    """Calls the command in this process; returns exit code, output and errors."""

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="module")
def finished(shell, tiny_run, tiny_config_file, tmp_path_factory):
    """``scbig run`` through all stages in a process of its own. After ``tiny_run``, whose programs it finds compiled."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    return folder, shell("run", "--workdir", folder, "--config", tiny_config_file)


@pytest.fixture(scope="module")
def sampled(shell, tiny_run, labels, tmp_path_factory):
    """``scbig sample`` of a seen single, an unseen pair and control."""
    out = tmp_path_factory.mktemp("sampled") / "x.h5ad"
    names = f"{labels[0]},{labels[2]}+{labels[1]},control"
    return out, shell("sample", "--workdir", tiny_run, "--conditions", names, "--n-cells", 37, "--out", out)


@pytest.fixture(scope="module")
def labels(tiny_run):
    """Perturbed genes of the screen."""
    obs = ad.read_h5ad(tiny_run / "prepared.h5ad", backed="r").obs
    return sorted({gene for c in obs["condition"].astype(str) for gene in genes_of(c)})


def test_the_package_starts_without_jax():
    code = "import scbig.cli, sys; assert not {'jax', 'anndata', 'scanpy', 'ott'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(call, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(*filter(None, [command]), "--help")
    lines = out.splitlines()
    assert code == 0 and not err and lines[0].startswith(f"usage: scbig {command}".rstrip())
    assert len(lines) <= 40 and max(map(len, lines)) <= 80


def test_help_lists_every_command_and_needs_no_jax(shell_environment):
    code = "import sys; from scbig.cli import main\ntry: main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=shell_environment, check=False
    )
    assert done.returncode == 0 and all(f"\n    {command} " in done.stdout for command in COMMANDS)


def test_run_goes_through_all_stages_and_prints_the_table(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device: cpu")
    assert [name for name in STAGES if any(line.startswith(f"{name}: done in ") for line in lines)] == list(STAGES)
    rows = {line.split()[0] for line in lines if line.startswith("  ") and line.split()}
    assert set(METHODS) <= rows
    for name in ("report", "cells", "scores"):
        (path,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
        assert path.startswith(str(folder)) and (folder / path).is_file()
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def test_a_second_run_does_nothing_and_says_the_same(finished, shell, tiny_config_file):
    folder, done = finished
    before = digest(folder)
    again = shell("run", "--workdir", folder)  # the settings are kept with the run
    assert again.returncode == 0 and digest(folder) == before
    assert [f"{name}: done before" in again.stdout.splitlines() for name in STAGES] == [True] * len(STAGES)
    table = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [line for line in again.stdout.splitlines() if line.startswith("  ")] == table


def test_stages_one_by_one_in_another_process_give_the_same_bits(
    finished, shell, call, tiny_config_file, tmp_path, tiny_run
):
    folder = tmp_path / "staged"
    for stage in ("prepare", "cluster", "pretrain", "train", "sample", "evaluate", "report"):
        if stage in ("pretrain", "train"):
            # Alone in a process, as a cluster job is; the quick stages need no process each.
            done = shell(stage, "--workdir", folder)
            assert done.returncode == 0, done.stderr
        else:
            config = ["--config", tiny_config_file] if stage == "prepare" else []
            code, _, err = call(stage, "--workdir", folder, *config)
            assert code == 0, err
        assert Run(folder).is_done(stage)
    one, other = (ad.read_h5ad(each / "predictions/test.h5ad") for each in (finished[0], folder))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.obs.equals(other.obs)
    assert (folder / "report.html").stat().st_size > 1000


def test_a_seed_makes_another_run(finished, tiny_run):
    # The same seed in another process gives the same bits as here, under the type checks.
    one, other = (ad.read_h5ad(each / "predictions/test.h5ad") for each in (finished[0], tiny_run))
    np.testing.assert_array_equal(one.obs["source_cell"], other.obs["source_cell"])
    np.testing.assert_allclose(one.X, other.X, atol=1e-4)


def test_sampled_cells_say_what_they_are(sampled, tiny_run, labels):
    out, done = sampled
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("device: cpu") and "111 cells of 3 conditions × 60 genes" in done.stdout
    cells, prepared = ad.read_h5ad(out), ad.read_h5ad(tiny_run / "prepared.h5ad")
    pair = "+".join(sorted(labels[1:3]))
    assert cells.obs["condition"].value_counts().to_dict() == {labels[0]: 37, pair: 37, CONTROL: 37}
    assert {"context", "batch", "source_cell"} <= set(cells.obs) and cells.obs_names.is_unique
    assert list(cells.var_names) == list(prepared.var_names)
    assert cells.obsm["X_latent"].shape == (111, 8)
    assert list(cells.varm["spread"].columns) == [labels[0], pair, CONTROL]
    about = cells.uns["scbig"]
    assert about["kind"] == "cells" and about["normalization"] == "median"
    assert about["target_sum"] == prepared.uns["scbig"]["target_sum"]
    sources = prepared.obs.loc[cells.obs["source_cell"], "condition"]
    assert (sources == CONTROL).all()


def test_scanpy_takes_sampled_cells_as_they_are(sampled, labels):
    import scanpy as sc

    cells = ad.read_h5ad(sampled[0])
    sc.tl.rank_genes_groups(cells, "condition", reference="control", method="wilcoxon")
    names = cells.uns["rank_genes_groups"]["names"]
    assert labels[0] in names.dtype.names and len(names) == 60


def test_a_gene_that_training_never_saw_can_be_sampled(call, tiny_run, labels, tmp_path):
    unseen = next(g for g in ad.read_h5ad(tiny_run / "prepared.h5ad").var_names if g not in labels)
    code, _, err = call(
        "sample", "--workdir", tiny_run, "--conditions", unseen, "--n-cells", 9, "--out", tmp_path / "x.h5ad"
    )
    assert code == 0, err
    cells = ad.read_h5ad(tmp_path / "x.h5ad")
    assert set(cells.obs["condition"]) == {unseen} and np.isfinite(cells.X).all() and cells.n_obs == 9


def test_a_gene_that_nothing_knows_is_named_with_the_sources(shell, tiny_run, tmp_path):
    done = shell("sample", "--workdir", tiny_run, "--conditions", "NOSUCH", "--out", tmp_path / "x.h5ad")
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert all(name in line for name in ("NOSUCH", "semantic", "noisy", "identity"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_with_force(call, tiny_run, tmp_path):
    out = tmp_path / "x.h5ad"
    out.write_text("mine")
    arguments = ("sample", "--workdir", tiny_run, "--conditions", "control", "--n-cells", 5, "--out", out)
    code, _, err = call(*arguments)
    assert code == 2 and str(out) in one_line(err) and "--force" in err and out.read_text() == "mine"
    code, _, err = call(*arguments, "--force")
    assert code == 0 and ad.read_h5ad(out).n_obs == 5 and [p.name for p in tmp_path.iterdir()] == ["x.h5ad"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "give --out FILE.h5ad"),
        (["--out", "x.csv"], "x.csv must end in .h5ad"),
        (["--out", "x.h5ad", "--config.flow.steps=3"], "--config.flow.steps=3 does not apply"),
        (["--out", "x.h5ad", "--n-cells", "0"], "--n-cells 0"),
        (["--out", "x.h5ad", "--context", "K562"], "K562"),
        (["--out", "x.h5ad", "--guidance", "2"], "null_dropout"),
    ],
)
def test_sample_names_mistakes(call, tiny_run, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("sample", "--workdir", tiny_run, "--conditions", "control", *more)
    assert code == 2 and says in one_line(err) and list(tmp_path.iterdir()) == []


def test_two_runs_are_an_ensemble(call, tiny_run, copy_of_run, tmp_path, labels):
    out = tmp_path / "x.h5ad"
    code, _, err = call(
        "sample", "--workdir", tiny_run, "--workdir", copy_of_run, "--conditions", labels[0], "--n-cells", 11,
        "--out", out,
    )  # fmt: skip
    assert code == 0, err
    cells = ad.read_h5ad(out)
    assert cells.n_obs == 11 and list(cells.varm["seed_spread"].columns) == [labels[0]]
    # The two are the same run, so their means agree and nothing is spread.
    np.testing.assert_allclose(cells.varm["seed_spread"].to_numpy(), 0.0, atol=1e-5)
    assert cells.obs["run"].nunique() == 2


def test_anyones_predictions_are_scored(call, tiny_run, tmp_path):
    out = tmp_path / "scores"
    arguments = (
        "evaluate", "--predictions", f"mine={tiny_run}/predictions/test.h5ad", "--data", tiny_run / "prepared.h5ad",
        "--split", tiny_run / "split.csv", "--out", out,
    )  # fmt: skip
    code, said, err = call(*arguments, "--config.evaluation.n_cells=40")
    assert code == 0, err
    rows = {line.split()[0] for line in said.splitlines() if line.startswith("  ") and line.split()}
    assert {"mine", *METHODS[1:]} <= rows and (out / "report.html").is_file()
    summary = json.loads((out / "summary.json").read_text())
    ours = json.loads((tiny_run / "evaluation/summary.json").read_text())

    def score(document, name):
        (row,) = (
            r for r in document["summary"]
            if r["method"] == name and r["metric"] == "pearson_delta" and r["stratum"] == "all"
        )  # fmt: skip
        return row["mean"]

    assert score(summary, "mine") == pytest.approx(score(ours, "scBIG"), abs=1e-9)
    assert score(summary, "additive") == pytest.approx(score(ours, "additive"), abs=1e-9)
    before = digest(out)
    code, _, err = call(*arguments)
    assert code == 2 and "--force" in one_line(err) and digest(out) == before


def test_raw_counts_are_normalised_before_they_are_compared(call, tiny_run, tiny_screen, tmp_path):
    arguments = (
        "evaluate", "--predictions", f"mine={tiny_run}/predictions/test.h5ad", "--data", tiny_screen / "screen.h5ad",
        "--split", tiny_run / "split.csv", "--out", tmp_path / "scores", "--config.data.condition=condition",
        "--config.evaluation.n_cells=40",
    )  # fmt: skip
    code, _, err = call(*arguments)
    assert code == 0, err
    ours = (tiny_run / "evaluation/summary.json").read_text()
    means = [
        [r["mean"] for r in json.loads(text)["summary"] if (r["method"], r["metric"]) == ("additive", "pearson_delta")]
        for text in (ours, (tmp_path / "scores/summary.json").read_text())
    ]
    assert means[0] == pytest.approx(means[1], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate"], "evaluate what?"),
        (["evaluate", "--predictions", "x.h5ad"], "--predictions needs --data"),
        (["evaluate", "--predictions", "x.h5ad", "--data", "d.h5ad", "--split", "s.csv"], "needs --out"),
        (["run", "--workdir", "w"], "no screen given"),
        (["run", "--workdir", "w", "--config", "absent.py"], "no configuration file absent.py"),
        (["run", "--workdir", "w", "--config.flow.stpes=3"], "did you mean flow.steps?"),
        (["run", "--workdir", "w", "--config.flow.steps=many"], "--config.flow.steps=many: int expected"),
        (["run", "--workdir", "w", "--config.flow.steps"], "has no value"),
        (["train", "--workdir", "w"], "stage prepare has not been run"),
        (["sample", "--workdir", "w", "--conditions", "A", "--out", "x.h5ad"], "w is not a run directory"),
        (["sample", "--workdir", "w", "--workdir", "v"], "several are for --conditions"),
        (["fetch", "nosuch"], "nosuch"),
        (["fetch", "--config.seed=1"], "--config.seed=1 does not apply"),
        (["simulate", "--out", "s", "--config.seed=1"], "--config.seed=1 does not apply"),
        (["simulate", "--out", "s", "--n-cells", "20"], "n_cells=20"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2 and says in one_line(err) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["nosuch"], ["run"], ["run", "--workdir", "w", "--nosuch"], ["run", "--workdir", "w", "stray"]]
)
def test_what_cannot_be_parsed_is_refused_with_the_usage(call, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2 and err.startswith("usage: scbig") and list(tmp_path.iterdir()) == []


def test_a_defect_is_not_dressed_up_as_a_mistake(monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(commands, "dispatch", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["fetch"])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "dispatch", interrupted)
    assert cli.main(["fetch"]) == 130 and "run the same command again" in capsys.readouterr().err


def test_fetch_lists_the_names(call):
    from scbig.data import DATASETS

    code, out, _ = call("fetch")
    assert code == 0 and all(any(line.startswith(name) for line in out.splitlines()) for name in DATASETS)


def test_simulate_writes_a_screen_with_priors_and_truth(call, tmp_path):
    code, out, err = call("simulate", "--out", tmp_path / "s", "--n-cells", 600, "--seed", 3)
    assert code == 0, err
    named = [line.split()[1] for line in out.splitlines()]
    assert len(named) == 3 and all((tmp_path / name).exists() for name in named)
    assert ad.read_h5ad(tmp_path / "s/screen.h5ad").n_obs == 600
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    code, _, err = call("simulate", "--out", tmp_path / "mine")
    assert code == 2 and "mine" in one_line(err) and [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_force_runs_a_stage_again_and_forgets_what_read_from_it(call, copy_of_run):
    code, _, err = call("sample", "--workdir", copy_of_run, "--force", "--config.sample.n_cells=20")
    assert code == 0, err
    run = Run(copy_of_run)
    assert run.is_done("sample") and not run.is_done("evaluate") and not run.is_done("report") and run.is_done("train")
    cells = ad.read_h5ad(copy_of_run / "predictions/test.h5ad")
    assert (cells.obs["condition"].value_counts() == 20).all()


def test_a_changed_setting_is_refused_naming_old_and_new(call, copy_of_run):
    before = digest(copy_of_run)
    code, _, err = call("run", "--workdir", copy_of_run, "--config.flow.steps=50")
    assert code == 2 and "flow.steps=100 (now 50)" in one_line(err) and "scbig train --force" in err
    assert digest(copy_of_run) == before


def test_a_run_can_be_moved(call, tiny_run, tmp_path):
    moved = shutil.copytree(tiny_run, tmp_path / "elsewhere")
    code, _, err = call(
        "sample", "--workdir", moved, "--conditions", "control", "--n-cells", 5, "--out", tmp_path / "x.h5ad"
    )
    assert code == 0, err
