"""``scbig analyze``: a page with tables and figures of a run, whole or not at all."""

import json

import pandas as pd
import pytest

from scbig.errors import InputError
from scbig.stages.analyze import Task, analyze


@pytest.fixture(scope="module")
def analysed(tiny_run, tmp_path_factory):
    """The parts that need no training of their own; UMAP is left out since it compiles for half a minute."""
    out = tmp_path_factory.mktemp("analysis") / "made"
    page = analyze(Task(str(tiny_run), str(out), only=("nearest", "modules", "programs"), quick=True))
    assert page == out / "index.html"
    return out


def test_the_page_holds_every_part_and_loads_nothing(analysed):
    text = (analysed / "index.html").read_text(encoding="utf-8")
    for title in ("Modules", "Programs: which modules move", "Nearest known perturbations", "What this rests on"):
        assert f"<h2>{title}</h2>" in text
    assert 'src="http' not in text
    assert text.index("<h2>Modules") < text.index("<h2>Programs: which") < text.index("<h2>Nearest known")
    assert text.count("<img") == len(list(analysed.glob("*/*.svg")))


def test_tables_can_be_read_and_figures_are_there_twice(analysed):
    tables = {file.stem: pd.read_csv(file) for file in analysed.glob("*/*.csv")}
    assert {"audit", "coherence", "changes", "genes", "modules_by_condition", "agreement", "neighbours"} <= set(tables)
    assert all(len(tables[name]) for name in ("coherence", "changes", "genes", "agreement", "neighbours"))
    assert tables["modules_by_condition"]["q"].between(0, 1).all()
    assert (tables["changes"]["low"] <= tables["changes"]["high"]).all()
    assert {f.stem for f in analysed.glob("*/*.svg")} == {f.stem for f in analysed.glob("*/*.png")}


def test_the_record_says_what_it_rests_on(analysed, tiny_run):
    record = json.loads((analysed / "about.json").read_text(encoding="utf-8"))
    assert record["ask"]["draws"] == record["ask"]["permutations"] == 50
    assert record["parts"] == dict.fromkeys(("modules", "programs", "nearest"), "done")
    stages = json.loads((tiny_run / "provenance.json").read_text(encoding="utf-8"))["stages"]
    assert record["inputs"]["prepared.h5ad"] == stages["prepare"]["outputs"]["prepared.h5ad"]


def test_an_analysis_is_replaced_only_by_force_and_nothing_else_ever(analysed, tiny_run, tmp_path):
    task = Task(str(tiny_run), str(analysed), only=("modules",), quick=True)
    with pytest.raises(InputError, match="holds an analysis.*--force"):
        analyze(task)
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").write_text("no")
    with pytest.raises(InputError, match="is no analysis"):
        analyze(Task(str(tiny_run), str(other), force=True))
    assert (other / "thesis.tex").exists()


def test_unknown_parts_and_conditions_are_refused_and_nothing_is_written(tiny_run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--only modlues: no such part \(did you mean modules\?\); there are modules"):
        analyze(Task(str(tiny_run), str(out), only=("modlues",)))
    known = pd.read_csv(tiny_run / "split.csv", comment="#")["condition"][0]
    with pytest.raises(InputError, match=rf"does not know {known}X; near are .*{known}"):
        analyze(Task(str(tiny_run), str(out), conditions=(f"{known}X",)))
    assert not out.exists()


def test_a_failing_part_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    from scbig.analysis import programs

    def broken(view, ask):
        raise RuntimeError("defect")

    monkeypatch.setattr(programs, "report", broken)
    with pytest.raises(RuntimeError, match="defect"):
        analyze(Task(str(tiny_run), str(tmp_path / "out"), only=("programs",)))
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_apply_says_so_on_the_page(tiny_run, tmp_path, monkeypatch, capsys):
    from scbig.analysis import programs
    from scbig.analysis.section import NotHere

    def not_here(view, ask):
        raise NotHere("no pairs were measured")

    monkeypatch.setattr(programs, "report", not_here)
    page = analyze(Task(str(tiny_run), str(tmp_path / "out"), only=("programs",)))
    assert "Not in this run: no pairs were measured." in page.read_text(encoding="utf-8")
    assert "no pairs were measured" in capsys.readouterr().out


def test_asked_conditions_are_those_shown_measured_or_not(tiny_run, tmp_path):
    split = pd.read_csv(tiny_run / "split.csv", comment="#")
    singles = sorted(name for name in split["condition"] if "+" not in name and name != "control")
    pairs = {f"{a}+{b}" for a in singles for b in singles if a < b} - set(split["condition"])
    unseen, seen = min(pairs), split["condition"][split["part"] == "test"].iloc[0]
    given = "+".join(reversed(unseen.split("+")))
    page = analyze(Task(str(tiny_run), str(tmp_path / "out"), ("programs",), (given, seen), quick=True))
    table = pd.read_csv(page.parent / "programs/modules_by_condition.csv")
    assert list(dict.fromkeys(table["condition"])) == [unseen, seen]
    assert table.groupby("condition")["change"].count().to_dict() == {unseen: 0, seen: 5}
    assert table["predicted"].notna().all()
