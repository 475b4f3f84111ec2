"""The model card: every number from the run's records, and what is not known is said."""

import json
import re

import pytest

from scbig import cli, evaluation, predict, stages
from scbig.data import Split
from scbig.evaluation.page import number
from scbig.run import STAGES, Run
from scbig.stages import card


@pytest.fixture(scope="module")
def text(tiny_run):
    return card.render(Run(tiny_run))


@pytest.fixture(scope="module")
def scores(tiny_run):
    return evaluation.load(tiny_run / "evaluation")


def sections(text):
    return {part.split("\n")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


def rows(part):
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("|")]


def test_the_stage_writes_it_and_a_run_records_it(tiny_run, text):
    assert "model_card.md" in STAGES["report"].writes
    assert (tiny_run / "model_card.md").read_text() == text
    assert "model_card.md" in Run(tiny_run).provenance["stages"]["report"]["outputs"]


def test_sections_are_those_of_a_model_card(text):
    assert list(sections(text)) == [
        "Model details", "Intended use", "Data", "Prior knowledge", "Training", "Results",
        "Where the mean of a prediction comes from", "Limits", "How to cite",
    ]  # fmt: skip


def test_it_is_sound_markdown(text):
    for part in sections(text).values():
        width = {len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines() if line.startswith("|")}
        assert len(width) <= 3 and "nan" not in part.split() and "None" not in part and "<p" not in part
    assert "\n\n\n" not in text


def test_data_are_those_of_the_run(text, tiny_run):
    told = dict(row[:2] for row in rows(sections(text)["Data"]) if len(row) == 2)
    split, record = Split.load(tiny_run / "split.csv"), Run(tiny_run).provenance["stages"]
    assert split.sha256 in told["split"] and record["prepare"]["inputs"]["data"] in told["screen"]
    assert told["cells"].startswith("800,") and told["genes"] == "60"
    n = {part: len(split.conditions(part)) for part in ("train", "val", "test")}
    assert told["conditions"] == ", ".join(f"{count} {part}" for part, count in n.items())
    assert "simulated" in sections(text)["Data"]
    # The name of the file and not where it lies, which is nobody's business.
    assert "screen.h5ad" in told["screen"] and "/" not in told["screen"]


def test_parameters_are_counted(text, tiny_run):
    run = predict.load(tiny_run)
    import jax
    from flax import nnx

    flow = nnx.split(nnx.merge(run.graph, run.params), nnx.Param, ...)[1]
    told = {row[0]: row[1] for row in rows(sections(text)["Training"])}
    for name, params in (("autoencoder", run.auto.params), ("flow", flow)):
        assert told[name] == f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}"


def test_scores_have_intervals_and_stand_beside_the_baselines(text, scores):
    table = rows(sections(text)["Results"])
    s = scores.summary
    for method in scores.methods:
        row = next(row for row in table if row[0].removesuffix(" (baseline)") == method)
        hit = s[(s["method"] == method) & (s["metric"] == "pearson_delta") & (s["stratum"] == "all")].iloc[0]
        assert row[1].startswith(number(hit["mean"])) and f"({number(hit['low'])} to {number(hit['high'])})" in row[1]
        assert (method == "scBIG") != row[0].endswith("(baseline)")
    assert "the best baseline" in sections(text)["Results"] and "Only 3 test conditions" in sections(text)["Results"]


def test_the_anchor_tells_its_skill_and_what_its_intervals_covered(text, tiny_run, scores):
    anchor, rests = predict.load(tiny_run).anchor, card.rests_on(Run(tiny_run), scores)
    table = {row[0].split(":")[0]: row for row in rows(sections(text)["Where the mean of a prediction comes from"])}
    for kind in set(rests["kind"]):
        row, asked = table[kind], rests[rests["kind"] == kind]
        assert row[2] == (number(anchor.skill[kind]) if kind in anchor.skill else "unknown")
        assert row[4] == str(len(asked)) and row[5] == number(float(asked["value"].mean()))
    limits = sections(text)["Limits"]
    untested = {"combination", "partly", "unseen", "context"} - set(rests["kind"])
    assert all(kind in limits.splitlines()[2] for kind in untested)


def test_a_run_that_was_not_evaluated_says_so(copy_of_run):
    run = Run(copy_of_run)
    run.forget("sample")
    text = card.render(run)
    assert "**It was not evaluated**" in text and "**Not evaluated.**" in text
    assert "baseline" not in sections(text)["Results"]


def test_a_bundle_says_which_cells_it_holds(tiny_run):
    told = {"cells": 30, "of": 160, "per_context": {"line1": 30}}
    assert "30 **control cells of the screen** (line1 30; of 160)" in card.render(Run(tiny_run), told)
    none = card.render(Run(tiny_run), told | {"cells": 0, "per_context": {}})
    assert "- No cells." in none and "control cells of the screen" not in none
    assert "Mean effects of the training conditions" in none


def test_a_run_finished_before_there_were_cards_stays_finished(copy_of_run, tiny_settings, capsys):
    run = Run(copy_of_run)
    record = run.provenance
    del record["stages"]["report"]["outputs"]["model_card.md"]
    (copy_of_run / "provenance.json").write_text(json.dumps(record))
    (copy_of_run / "model_card.md").unlink()
    stages.execute(copy_of_run, tiny_settings(), ("report",))
    assert "report: done before" in capsys.readouterr().out
    assert card.render(run)
    # Asked for again, it is written.
    assert cli.main(["report", "--workdir", str(copy_of_run), "--force"]) in (0, None)
    assert (copy_of_run / "model_card.md").is_file()


def test_pipes_in_names_do_not_break_tables():
    from scbig.stages.card_scores import table

    assert table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"
