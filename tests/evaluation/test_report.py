"""The report: whole, self-contained, honest in its verdict, and the scores behind it survive a round trip."""

import json
import re
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.data.splits import Split
from scbig.errors import InputError
from scbig.evaluation import Curves, Scores, console_table, evaluate, load, render, write

GENES = [f"g{i:02d}" for i in range(60)]
TESTED = [f"g{i:02d}+g{i + 1:02d}" for i in range(12)]


def effects(x: np.ndarray, conditions: list[str]) -> ad.AnnData:
    obs = pd.DataFrame({"condition": conditions}, index=conditions)
    table = ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    table.uns["scbig"] = {"kind": "effects"}
    return table


@pytest.fixture(scope="module")
def scores() -> Scores:
    rng = np.random.default_rng(0)
    train = ["g40", "g41", "g42"]
    truth = rng.normal(size=(15, 60))
    rows = [(c, "train", "") for c in train]
    rows += [(c, "test", "near" if i < 5 else "far") for i, c in enumerate(TESTED)]
    split = Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    test = truth[3:]
    methods = {
        "scBIG": effects(test + 0.5 * rng.normal(size=test.shape), TESTED),
        "twin": effects(test + 0.5 * rng.normal(size=test.shape), TESTED),
        "additive": effects(test[:9] + 2.0 * rng.normal(size=(9, 60)), TESTED[:9]),
        "control": effects(np.zeros_like(test), TESTED),
    }
    why = {("additive", c, "all"): "no training effect of the single perturbation: <b>g9</b>" for c in TESTED[9:]}
    return evaluate(methods, effects(truth, [*train, *TESTED]), split, reasons=why, references=())


class Outline(HTMLParser):
    """Checks that tags nest and collects what a reader and a browser would meet."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "wbr", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    return outline


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(scores):
    extra = {
        "Training": [
            Curves({"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, y_label="loss", log_y=True, mark=2),
            "It ended.",
        ],
        "Modules": pd.DataFrame({"module": ["<m>"], "z": [12.25]}),
        "Timings": {"prepare": 12.5},
    }
    text = render(scores, primary="scBIG", title="A <title>", extra=extra)
    outline = read(text)
    # Figures refer to parts of themselves only.
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert not re.search(r"@import|<script[^>]|<link|url\((?!#)|fetch\(|XMLHttp|import\(", text)
    assert re.findall(r"https?://[^\s\"]+", text) == ["http://www.w3.org/2000/svg"] * text.count("<svg")
    assert "<b>g9</b>" not in text and "<m>" not in text and "A <title>" not in text
    shown = " ".join(outline.text)
    for part in (
        "Training",
        "It ended.",
        "Modules",
        "12.2",
        "Timings",
        "Left out, and why",
        "Provenance",
        "By stratum",
    ):
        assert part in shown
    assert scores.provenance["split_sha256"] in shown
    assert text.count("<svg") == 4 + 2 + 3 + 1


def test_the_same_scores_give_the_same_page(scores):
    assert render(scores) == render(scores)


def test_the_verdict_comes_first_and_knows_a_draw(scores):
    shown = " ".join(" ".join(read(render(scores, primary="scBIG")).text).split())
    lead = shown.index("scBIG is better than additive, the best baseline: pearson_delta")
    assert lead < shown.index("No real difference between scBIG and twin, the other model") < shown.index("Methods")
    shown = " ".join(read(render(scores, primary="additive")).text)
    assert "additive is worse than" in shown and "additive 9" in shown
    assert "control" in render(scores, primary="control")
    with pytest.raises(InputError, match=r"'nobody'.*scBIG"):
        render(scores, primary="nobody")


def test_the_first_that_is_no_baseline_is_the_method_in_question(scores):
    assert "scBIG and twin" in render(scores)


def test_console_table_compares_on_common_conditions(scores):
    rows = console_table(scores, ["pearson_delta", "e_distance_share", "pds_l2"])
    assert rows[0] == ["method", "pearson_delta", "pds_l2", "conditions"]
    assert [row[0] for row in rows[1:]] == ["scBIG", "twin", "additive", "control"]
    assert {row[-1] for row in rows[1:]} == {"9"}
    assert rows[1][1] == f"{scores.value('scBIG', 'pearson_delta', 'common'):.3f}"
    assert console_table(scores, ["mse"], "all")[1][-1] == "12"


def test_files_are_tidy_and_survive_a_round_trip(scores, tmp_path):
    path = write(scores, tmp_path / "evaluation")
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "ceilings.csv",
        "effects.npz",
        "per_condition.csv",
        "report.html",
        "summary.json",
    ]
    table = pd.read_csv(path.parent / "per_condition.csv", keep_default_na=False)
    assert list(table) == ["method", "condition", "context", "stratum", "metric", "value"]
    document = json.loads((path.parent / "summary.json").read_text(), parse_constant=pytest.fail)
    assert document["provenance"]["split"] == "made"
    back = load(path.parent)
    pd.testing.assert_frame_equal(
        back.per_condition.reset_index(drop=True), scores.per_condition.reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(back.summary, scores.summary)
    pd.testing.assert_frame_equal(back.excluded, scores.excluded)
    pd.testing.assert_frame_equal(back.conditions, scores.conditions, check_dtype=False)
    assert back.genes == scores.genes and back.methods == scores.methods
    np.testing.assert_array_equal(back.observed, scores.observed)
    assert render(back) == render(scores)


def test_a_section_that_cannot_be_shown_writes_nothing(scores, tmp_path):
    with pytest.raises(TypeError, match="Odd"):
        write(scores, tmp_path / "out", extra={"Odd": object()})
    assert not (tmp_path / "out").exists()
