"""``scbig export`` and what it refuses."""

import shutil

import anndata as ad
import pytest

from scbig import cli, predict
from scbig.run import Run


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    """Exit status of the command."""
    try:
        return cli.main([str(word) for word in words]) or 0
    except SystemExit as end:
        return end.code


def test_export_then_sample(tiny_run, in_folder, capsys):
    assert call("export", "--workdir", tiny_run, "--out", "tiny.scbig", "--controls", 30) == 0
    said = capsys.readouterr().out
    assert "MB  flow/params.npz" in said and "MB  tiny.scbig" in said and "sha256 " in said
    assert "30 of " in said and "control cells of the screen travel along" in said and "perturbed cells do not" in said
    name = predict.load(tiny_run).vocabulary.trained[0]
    assert call("sample", "--workdir", "tiny.scbig", "--conditions", name, "--n-cells", 7, "--out", "cells.h5ad") == 0
    assert ad.read_h5ad("cells.h5ad").n_obs == 7
    assert [each.name for each in in_folder.iterdir() if each.name.startswith(".")] == []


def test_without_cells_the_console_says_so(tiny_run, in_folder, capsys):
    assert call("export", "--workdir", tiny_run, "--out", "bare.scbig", "--controls", 0) == 0
    assert "no cells travel along" in capsys.readouterr().out
    assert call("sample", "--workdir", "bare.scbig", "--conditions", "control", "--out", "cells.h5ad") == 2
    assert "exported without control cells" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "there.scbig"], "there.scbig exists; choose another --out or replace it with --force"),
        (["--out", "model.zip"], "--out model.zip must end in .scbig"),
        (["--out", "new.scbig", "--controls", "-1"], "--controls -1: a number of cells is expected"),
    ],
)
def test_refusals_leave_everything_as_it_was(tiny_run, in_folder, capsys, words, says):
    (in_folder / "there.scbig").write_text("mine")
    assert call("export", "--workdir", tiny_run, *words) == 2
    assert says in capsys.readouterr().err
    assert [each.name for each in in_folder.iterdir()] == ["there.scbig"]
    assert (in_folder / "there.scbig").read_text() == "mine"


def test_force_replaces(tiny_run, in_folder):
    (in_folder / "there.scbig").write_text("mine")
    assert call("export", "--workdir", tiny_run, "--out", "there.scbig", "--force") == 0
    assert predict.load("there.scbig").name == "tiny"


def test_only_a_trained_run_is_exported(copy_of_run, in_folder, capsys):
    (in_folder / "model.scbig").write_text("x")
    assert call("export", "--workdir", "model.scbig", "--out", "new.scbig") == 2
    assert "model.scbig is a file; name the run directory" in capsys.readouterr().err
    assert call("export", "--workdir", in_folder, "--out", "new.scbig") == 2
    assert "is not a run directory" in capsys.readouterr().err
    Run(copy_of_run).forget("train")
    assert call("export", "--workdir", copy_of_run, "--out", "new.scbig") == 2
    assert "stage train has not been run" in capsys.readouterr().err
    assert not (in_folder / "new.scbig").exists()


def test_a_run_that_changed_since_is_refused(copy_of_run, in_folder, capsys):
    shutil.copyfile(copy_of_run / "modules.csv", in_folder / "old.csv")
    text = (in_folder / "old.csv").read_text()
    (copy_of_run / "modules.csv").write_text(text + "\n")
    assert call("export", "--workdir", copy_of_run, "--out", "new.scbig") == 2
    assert "modules.csv changed since" in capsys.readouterr().err
