"""Sweeps: the grid, runs as processes, one that fails, and going on."""

import csv
import shutil

import pytest

from scbig import cli, config
from scbig.errors import InputError
from scbig.run import STAGES, Run
from scbig.stages import forks, sweep


def test_the_grid_is_parsed():
    assert sweep.parse(["flow.lambda_corr=0.0,0.1", "seed=0, 1,2"]) == {
        "flow.lambda_corr": ["0.0", "0.1"],
        "seed": ["0", "1", "2"],
    }
    assert sweep.parse(["priors.condition=a.npz,b.npz;identity"]) == {"priors.condition": ["a.npz,b.npz", "identity"]}


@pytest.mark.parametrize(
    ("varied", "says"),
    [
        (["seed"], "--vary seed names no values"),
        (["seed="], "names no values"),
        (["seed=1,,2"], "names no values"),
        (["seed=1,1"], "names a value twice"),
        (["seed=1", "seed=2"], "--vary seed is given twice"),
        (["flow.stpes=3"], "did you mean flow.steps?"),
        (["seed=1,many"], "--config.seed=many: int expected"),
        (["data.path=a/b,a_b"], "cannot be told apart"),
    ],
)
def test_mistakes_in_the_grid_are_told_before_anything_is_run(varied, says, tmp_path, capsys):
    code = cli.main(
        ["sweep", "--workdir", str(tmp_path / "s"), *(word for each in varied for word in ("--vary", each))]
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and says in line and list(tmp_path.iterdir()) == []


def test_members_are_all_combinations(tmp_path):
    members = list(
        sweep._members(config.default(), {"flow.lambda_corr": [0.0, 0.1], "priors.semantic": [("a", "b"), ()]})
    )
    assert [name for name, _, _ in members] == [
        "flow.lambda_corr=0.0,priors.semantic=a,b",
        "flow.lambda_corr=0.0,priors.semantic=",
        "flow.lambda_corr=0.1,priors.semantic=a,b",
        "flow.lambda_corr=0.1,priors.semantic=",
    ]
    assert [(c.flow.lambda_corr, c.priors.semantic) for _, _, c in members] == [
        (0.0, ("a", "b")), (0.0, ()), (0.1, ("a", "b")), (0.1, ()),
    ]  # fmt: skip
    with pytest.raises(InputError, match="--jobs -1"):
        sweep.sweep(config.default(), {"seed": [0]}, tmp_path, jobs=-1)


def test_a_run_waits_while_another_is_still_at_what_they_share(tiny_run, tiny_settings, tmp_path):
    first, second, third = tiny_settings(), tiny_settings(), tiny_settings()
    second.flow.sigma, third.split.seed = 0.1, 1
    files = forks.Files()
    under_way = [("a", {}, first)]
    assert sweep._held(tmp_path, ("b", {}, second), under_way, files)
    assert not sweep._held(tmp_path, ("c", {}, third), under_way, files)  # nothing in common
    assert not sweep._held(tmp_path, ("b", {}, second), [], files)
    run = Run(shutil.copytree(tiny_run, tmp_path / "a"))
    run.forget("pretrain")
    assert sweep._held(tmp_path, ("b", {}, second), under_way, files)
    shutil.rmtree(run.folder)
    Run(shutil.copytree(tiny_run, tmp_path / "a")).forget("train")
    assert not sweep._held(tmp_path, ("b", {}, second), under_way, files)


def told(folder):
    with open(folder / "sweep.csv", newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_again(tiny_run, shell, tiny_config_file, tmp_path, dask_scheduler):
    """After ``tiny_run``, whose programs the runs find compiled."""
    folder = tmp_path / "s"
    arguments = ("sweep", "--workdir", folder, "--config", tiny_config_file, "--vary", "split.n_test=1000,3")
    first = shell(*arguments)
    assert first.returncode == 2, first.stdout + first.stderr
    (line,) = first.stderr.splitlines()
    assert line.startswith("error: 1 of 2 runs failed: split.n_test=1000;")
    rows = told(folder)
    assert rows["split.n_test=1000"]["state"] == "failed" and "1000" in rows["split.n_test=1000"]["reason"]
    done = rows["split.n_test=3"]
    assert done["state"] == "done" and not done["reason"] and float(done["seconds"]) > 0
    run = Run(folder / "split.n_test=3")
    assert (
        set(run.provenance["stages"]) == set(STAGES) and not (folder / "split.n_test=1000" / "prepared.h5ad").exists()
    )
    recorded = run.provenance["stages"]["evaluate"]["remarks"]["pearson_delta"]
    assert float(done["pearson_delta"]) == pytest.approx(recorded)
    shown = [row.split() for row in first.stdout.splitlines() if row.startswith("  split.n_test=3 ")]
    assert shown[0][:2] == ["split.n_test=3", "done"] and f"{recorded:.3f}" in shown[0]
    # Again, on the workers of a scheduler: what is done is left alone, what failed is tried again.
    before = run.path("provenance.json").read_bytes()
    again = shell(*arguments, "--scheduler", dask_scheduler)
    assert again.returncode == 2 and "sweep: split.n_test=3: done before" in again.stdout.splitlines()
    assert "sweep: 2 of 2: split.n_test=1000: failed: " in again.stdout
    assert run.path("provenance.json").read_bytes() == before and told(folder) == rows
