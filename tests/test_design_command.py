"""``scbig design``: lists for the next screen from a finished run, and refusals that leave nothing behind."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.anchor import Anchor
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError
from scbig.stages.design import Task, design


@pytest.fixture(scope="module")
def screen(tiny_run):
    return ad.read_h5ad(tiny_run / "prepared.h5ad")


@pytest.fixture
def ask(tiny_run, tmp_path):
    def run(**given):
        return design(Task(**({"workdir": str(tiny_run), "out": str(tmp_path / "plan.csv"), "n": 5} | given)))

    return run


@pytest.fixture
def target(screen, tmp_path):
    path = tmp_path / "target.h5ad"
    screen[(screen.obs["condition"] != CONTROL).to_numpy()].copy().write_h5ad(path)
    return path


@pytest.mark.parametrize("by", ["interaction", "uncertainty", "target"])
def test_a_list_is_written(ask, target, tmp_path, screen, capsys, by):
    extra = {"target": str(target)} if by == "target" else {}
    found = ask(by=by, **extra)
    written = pd.read_csv(tmp_path / "plan.csv")
    assert list(written.columns[:4]) == ["rank", "condition", "context", "score"]
    assert {"low", "high", "reason", "nearest measured", "conditions so far", "cells"} <= set(written)
    assert written["rank"].tolist() == [1, 2, 3, 4, 5]
    assert written["condition"].tolist() == found["condition"].tolist()
    assert not set(written["condition"]) & set(screen.obs["condition"].astype(str))
    assert written["reason"].str.len().gt(10).all()
    told = capsys.readouterr().out
    assert written["condition"].iloc[0] in told
    assert "plan.csv" in told


def test_unmeasured_genes_and_files_of_candidates(ask, tiny_run, tmp_path, screen):
    anchor = Anchor.load(tiny_run / "flow" / "anchor.npz")
    alone = sorted(c for c in anchor.data.conditions if len(genes_of(c)) == 1)
    found = ask(by="uncertainty", candidates="singles")
    assert all(len(genes_of(c)) == 1 for c in found["condition"])
    assert not set(found["condition"]) & set(alone)
    measured = set(screen.obs["condition"].astype(str))
    fresh = [f"{a}+{b}" for a in alone for b in alone if a < b and f"{a}+{b}" not in measured][:3]
    listed = tmp_path / "list.txt"
    backwards = "+".join(reversed(fresh[0].split("+")))
    listed.write_text("\n".join(["# mine", backwards, *fresh, alone[0], ""]), encoding="utf-8")
    found = ask(by="uncertainty", candidates=str(listed), force=True)
    assert sorted(found["condition"]) == sorted(fresh)
    with pytest.raises(InputError, match="not a pair of genes"):
        listed.write_text(alone[0], encoding="utf-8")
        ask(by="interaction", candidates=str(listed), force=True)


def test_the_same_question_has_the_same_answer(ask, tmp_path):
    ask(by="interaction")
    first = (tmp_path / "plan.csv").read_bytes()
    ask(by="interaction", force=True)
    assert (tmp_path / "plan.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "interaction", "out": "plan.txt"}, "must end in .csv"),
        ({"by": "interaction", "n": 0}, "at least one"),
        ({"by": "target"}, "needs --target"),
        ({"by": "uncertainty", "target": "x.h5ad"}, "goes with --by target"),
        ({"by": "size"}, "--by size"),
        ({"by": "interaction", "candidates": "singles"}, "ranks pairs"),
        ({"by": "uncertainty", "candidates": "nowhere.txt"}, "nor a file"),
        ({"by": "uncertainty", "genes": ("NOSUCH",)}, "NOSUCH"),
        ({"by": "uncertainty", "context": "elsewhere"}, "elsewhere"),
        ({"by": "target", "target": "nowhere.h5ad"}, "is not there"),
        ({"by": "uncertainty", "workdir": "nowhere"}, "not a run directory"),
    ],
)
def test_refusals_write_nothing(ask, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        ask(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_exists_is_not_replaced(ask, tmp_path):
    (tmp_path / "plan.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists"):
        ask(by="uncertainty")
    assert (tmp_path / "plan.csv").read_text(encoding="utf-8") == "mine"


def test_unknown_genes_of_a_file_are_named(ask, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("NOSUCH+G0001\n", encoding="utf-8")
    with pytest.raises(InputError, match="NOSUCH"):
        ask(by="uncertainty", candidates=str(listed))
    assert not (tmp_path / "plan.csv").exists()


def test_targets_that_do_not_fit_are_refused(ask, target, tmp_path):
    cells = ad.read_h5ad(target)

    def refused(change, message):
        other = cells.copy()
        change(other)
        path = tmp_path / "other.h5ad"
        other.write_h5ad(path)
        with pytest.raises(InputError, match=message):
            ask(by="target", target=str(path))
        assert not (tmp_path / "plan.csv").exists()

    refused(lambda a: a.uns["scbig"].update(target_sum=1.5), "target_sum")
    refused(lambda a: a.uns.pop("scbig"), "not given")

    def rename(a):
        a.var_names = [f"X{i}" for i in range(a.n_vars)]

    refused(rename, "half are needed")

    def spoil(a):
        x = a.X.toarray()
        x[0, 0] = np.nan
        a.X = x

    refused(spoil, "not finite")


def test_the_command_line(shell, tiny_run, tmp_path):
    out = tmp_path / "plan.csv"
    done = shell("design", "--workdir", tiny_run, "--by", "uncertainty", "--n", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(out)) == 3
    done = shell("design", "--workdir", tiny_run, "--by", "uncertainty", "--out", out)
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert "Traceback" not in done.stderr
