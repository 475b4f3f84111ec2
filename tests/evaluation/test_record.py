"""Scores survive being written and read; what is missing or damaged is named."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from scbig.errors import InputError
from scbig.evaluation import load, render, save
from scbig.evaluation.record import FILES

TABLES = ("per_condition", "summary", "ceiling", "calibrated", "tests", "seeds", "excluded", "conditions")


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True), check_dtype=False)


def test_every_table_comes_back_to_the_last_digit(full_scores, tmp_path):
    save(full_scores, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    back = load(tmp_path)
    for name in TABLES:
        assert len(getattr(back, name)), name
        same(getattr(back, name), getattr(full_scores, name))
    np.testing.assert_array_equal(back.predicted["fusion-all"], full_scores.predicted["fusion-all"])
    assert back.tests["real"].dtype == bool and back.calibrated["usable"].dtype == bool
    assert render(back) == render(full_scores)


def test_the_ceilings_are_tidy(full_scores, tmp_path):
    save(full_scores, tmp_path)
    table = pd.read_csv(tmp_path / "ceilings.csv")
    assert list(table) == ["condition", "context", "stratum", "metric", "kind", "value", "sd", "draws"]


def test_missing_numbers_are_null_and_come_back_missing(full_scores, tmp_path):
    tests = full_scores.tests.head(3).assign(p=np.nan, p_holm=np.nan)
    ceiling = full_scores.ceiling.head(4).assign(sd=np.nan, condition="NA", draws=1)
    save(dataclasses.replace(full_scores, tests=tests, ceiling=ceiling), tmp_path)
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert document["tests"][0]["p"] is None and document["schema"] == 2
    back = load(tmp_path)
    same(back.tests, tests)
    same(back.ceiling, ceiling)
    assert back.tests["p"].dtype == back.ceiling["sd"].dtype == np.float64
    # A gene called NA is not a missing name.
    assert set(back.ceiling["condition"]) == {"NA"}


def test_empty_tables_keep_their_columns(effect_scores, tmp_path):
    save(effect_scores, tmp_path)
    back = load(tmp_path)
    for name in ("ceiling", "calibrated"):
        assert not len(getattr(back, name)) and list(getattr(back, name)) == list(getattr(effect_scores, name))


def test_scores_of_the_first_schema_are_read(full_scores, tmp_path):
    save(full_scores, tmp_path)
    (tmp_path / "ceilings.csv").unlink()
    document = json.loads((tmp_path / "summary.json").read_text())
    old = {k: v for k, v in document.items() if k not in ("calibrated", "tests", "seeds")} | {"schema": 1}
    for row in old["summary"]:
        del row["seed_sd"], row["n_seeds"]
    (tmp_path / "summary.json").write_text(json.dumps(old))
    back = load(tmp_path)
    assert not len(back.tests) and not len(back.ceiling) and len(back.summary)
    # Nothing was tested or calibrated; the report says so and compares by itself.
    text = render(back)
    assert "not corrected: the interval decides" in text and "Nothing is calibrated" in text


def test_absent_files_are_named(full_scores, tmp_path):
    with pytest.raises(InputError, match=r"per_condition.csv, summary.json, effects.npz, ceilings.csv missing"):
        load(tmp_path)
    save(full_scores, tmp_path)
    (tmp_path / "ceilings.csv").unlink()
    with pytest.raises(InputError, match=r"\(ceilings.csv missing\): run evaluate first"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"schema": 1'),
        ("summary.json", "[]"),
        ("per_condition.csv", "method,condition\na,b\n"),
        ("ceilings.csv", "condition,value,sd\nA,much,0.1\n"),
        ("effects.npz", "no archive"),
    ],
)
def test_damage_is_told(full_scores, tmp_path, name, content):

    save(full_scores, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path)
