"""What the report claims is what the tables say: verdict, calibrated and raw scores, ceilings, comparisons."""

import dataclasses
import re

import numpy as np
import pytest

from scbig.evaluation import METRICS, Scores, console_table, page, render
from scbig.evaluation.reading import compared, is_reference, ordered, role
from scbig.evaluation.sections import calibrated_scores, ceilings, comparisons, conditions, glossary, metrics, strata
from scbig.evaluation.statistics import compare
from scbig.evaluation.tables import GROUPS, grouped, raw_table, unusable
from scbig.evaluation.verdict import verdict


def words(text: str) -> str:
    """What a reader sees, without tags and figures."""
    text = re.sub(r"<svg.*?</svg>", " ", text, flags=re.DOTALL)
    text = re.sub(r"<wbr>", "", text).replace("&nbsp;", " ").replace("\u00a0", " ").replace("\u2009", " ")
    return " ".join(re.sub(r"<[^>]*>", " ", text).replace("&lt;", "<").replace("&#x27;", "'").split())


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the tables of a text by their first cell; of several tables, the first."""
    found: dict[str, list[str]] = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.DOTALL):
        cells = [words(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL)]
        found.setdefault(cells[0], cells)
    return found


def row_of(scores: Scores, first: str, second: str, metric: str):
    t = scores.tests
    hit = t[(t["first"] == first) & (t["second"] == second) & (t["metric"] == metric) & (t["stratum"] == "all")]
    return hit.iloc[0]


def with_tests(scores: Scores, second: str, **values) -> Scores:
    """The scores with another outcome of the test of scBIG against a rival in pearson_delta."""
    tests = scores.tests.copy()
    at = (tests["first"] == "scBIG") & (tests["second"] == second) & (tests["metric"] == "pearson_delta")
    for name, value in values.items():
        tests.loc[at, name] = value
    return dataclasses.replace(scores, tests=tests)


def test_roles_are_told_from_names():
    assert [role(n) for n in ("control", "shuffled", "additive", "linear-string_netmf128", "GEARS", "my-additive")] == [
        "negative", "negative", "baseline", "baseline", "model", "model",
    ]  # fmt: skip
    assert is_reference("mean") and not is_reference("scBIG")


def test_the_verdict_says_what_the_tests_say(full_scores):
    said = words(verdict(full_scores, "scBIG", "all"))
    t = row_of(full_scores, "scBIG", "low_rank", "pearson_delta")
    assert t["real"]
    values = [page.number(full_scores.value(m, "pearson_delta")) for m in ("scBIG", "low_rank")]
    assert said.startswith(
        f"scBIG is better than low_rank, the best baseline: pearson_delta {values[0]} against {values[1]}."
    )
    span = (
        f"Paired difference +{page.number(t['mean'])}, 95% interval {page.number(t['low'])} to {page.number(t['high'])}"
    )
    assert f"{span}, 30 conditions; Wilcoxon signed-rank p < 0.001 after Holm's correction" in said
    assert "No real difference between scBIG and scBIG_small, the best other model" in said
    assert "better in pearson_delta_ref_perturbed" in said and "e_distance_share (" in said


def test_a_p_that_does_not_survive_correction_is_no_real_difference(full_scores):
    scores = with_tests(full_scores, "low_rank", p=0.02, p_holm=0.24, real=False)
    said = words(verdict(scores, "scBIG", "all"))
    assert said.startswith("No real difference between scBIG and low_rank, the best baseline")
    assert "p = 0.240 after Holm's correction" in said


def test_worse_is_called_worse(full_scores):
    said = words(verdict(full_scores, "other_model", "all"))
    assert said.startswith("other_model is worse than low_rank, the best baseline")
    assert "other_model is worse than scBIG, the best other model" in said
    assert "closes nothing of the gap that low_rank leaves" in said


def test_a_baseline_can_be_in_question(full_scores):
    said = words(verdict(full_scores, "low_rank", "all"))
    assert "low_rank and additive, the best other baseline" in said or "than additive, the best other baseline" in said
    # The table has this pair the other way round.
    assert "low_rank is worse than scBIG, the best model" in said
    gap, back = (
        compared(full_scores, *pair, "pearson_delta", "all") for pair in (("low_rank", "scBIG"), ("scBIG", "low_rank"))
    )
    assert (gap.mean, gap.low, gap.high) == (-back.mean, -back.high, -back.low)
    assert gap.word == "worse" and back.word == "better" and gap.p_holm == back.p_holm


def test_without_tests_the_comparison_is_made_and_said_to_be_uncorrected(full_scores):
    bare = dataclasses.replace(full_scores, tests=full_scores.tests.iloc[:0])
    gap = compared(bare, "scBIG", "low_rank", "l2", "one unseen")
    inside = full_scores.per_condition[full_scores.per_condition["stratum"] == "one unseen"]
    told = compare(inside, "scBIG", "low_rank", "l2")
    assert (gap.mean, gap.n, gap.p) == (told.mean, 15, told.p) and np.isnan(gap.p_holm)
    # Smaller errors are better.
    assert gap.mean < 0 and gap.word == "better"
    assert "not corrected: the interval decides" in words(verdict(bare, "scBIG", "all"))


def test_the_nearer_to_its_target_the_better(full_scores):
    gap = compared(full_scores, "scBIG", "control", "variance_ratio", "all")
    assert gap.better and compared(full_scores, "control", "scBIG", "variance_ratio", "all").better is False


def test_how_far_from_the_ceiling_is_what_the_calibrated_table_says(full_scores):
    said = words(verdict(full_scores, "scBIG", "all"))
    c = full_scores.calibrated[full_scores.calibrated["stratum"] == "all"].set_index(["method", "metric"])
    lead, error = c.loc[("scBIG", "pearson_delta")], c.loc[("scBIG", "l2_ba_ate")]
    assert f"scBIG goes {100 * lead['calibrated']:.0f}% of the way from the best naive answer (mean, " in said
    assert f"closes {100 * lead['closed']:.0f}% of the gap that low_rank leaves" in said
    assert f"bridges {100 * error['calibrated']:.0f}% of the way from naive to experimental error" in said
    assert "coexpression_error" in said.split("for want of range:")[1].split(".")[0]
    assert "scBIG is the average of 3 seeds; pearson_delta by seed: " in said


def test_a_lead_metric_without_range_is_not_boasted_of(full_scores):
    c = full_scores.calibrated.copy()
    c.loc[c["metric"] == "pearson_delta", ["usable", "reason"]] = [False, "real cells do no better than 'mean'"]
    said = words(verdict(dataclasses.replace(full_scores, calibrated=c), "scBIG", "all"))
    assert "pearson_delta itself has no range on these data: real cells do no better than 'mean'." in said
    assert "goes" not in said


def test_below_the_naive_answers_nothing_is_bridged(full_scores):
    said = words(verdict(full_scores, "shuffled", "all"))
    assert "In pearson_delta, shuffled does not get past the best naive answer (mean, " in said
    assert "it bridges nothing of the way from naive to experimental error" in said and "closes" not in said


def test_tables_of_effects_say_in_one_line_that_there_is_no_ceiling(effect_scores):
    why = "a table of effects has no cells to split into halves"
    assert f"cannot be told: {why}." in words(verdict(effect_scores, "scBIG", "all"))
    assert words(calibrated_scores(effect_scores, "scBIG", "all")) == f"Calibrated scores Nothing is calibrated: {why}."
    assert words(ceilings(effect_scores, "scBIG", "all")) == f"Ceilings and controls No ceiling is known: {why}."
    assert "real cells" not in words(metrics(effect_scores, "scBIG", "all"))


@pytest.mark.parametrize("n", [1, 4])
def test_few_conditions_prove_little_and_that_is_said(full_scores, n):
    names = list(full_scores.conditions["condition"][:n])
    tables = {
        name: table[table["condition"].isin(names)].reset_index(drop=True)
        for name, table in (("per_condition", full_scores.per_condition), ("conditions", full_scores.conditions))
    }
    none = full_scores.tests.iloc[:0]
    scores = dataclasses.replace(
        full_scores, **tables, tests=none, observed=full_scores.observed[:n],
        predicted={k: v[:n] for k, v in full_scores.predicted.items()},
    )  # fmt: skip
    said = words(verdict(scores, "scBIG", "all"))
    if n == 1:
        assert said.startswith("One condition cannot tell scBIG from low_rank")
    else:
        assert "Below 6 conditions a signed-rank test cannot reach 0.05: the interval decides." in said
    assert "nan" not in words(render(scores)).lower().split()


def test_every_metric_stands_in_one_group():
    listed = [name for names in GROUPS.values() for name in names]
    assert len(listed) == len(set(listed)) and set(listed) <= set(METRICS)
    assert sorted(m for names in grouped(set(METRICS)).values() for m in names) == sorted(METRICS)


def test_every_metric_of_the_scores_is_shown(full_scores):
    shown = metrics(full_scores, "scBIG", "all")
    head = " ".join(words(h) for h in re.findall(r"<th [^>]*>(.*?)</th>", shown, flags=re.DOTALL)).split()
    present = [m for m in METRICS if m in set(full_scores.summary["metric"])]
    assert len(present) > 25 and set(present) <= set(head)
    assert all(name in words(glossary(full_scores)) for name in present)


def test_the_best_of_each_column_is_bold_whichever_way_is_better(full_scores):
    names = ["pearson_delta", "l2", "variance_ratio", "n_de"]
    text = raw_table(full_scores, names, "all", "scBIG")
    bold = re.findall(r"<tr[^>]*><td[^>]*>([^/]*?)</td>(.*?)</tr>", text, flags=re.DOTALL)
    where = {
        words(name): [bool("<b>" in cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", rest)] for name, rest in bold
    }
    for j, metric in enumerate(names[:3]):
        values = {m: full_scores.value(m, metric) for m in full_scores.methods}
        worth = {m: -abs(np.log(v)) if j == 2 else v * (-1 if j == 1 else 1) for m, v in values.items()}
        assert [m for m in full_scores.methods if where[m][j]] == [max(worth, key=worth.get)]
    # More genes called is neither good nor bad.
    assert not any(cells[3] for name, cells in where.items() if name in full_scores.methods)
    assert "variance_ratio → 1" in words(text) and "l2 ↓" in words(text)


def test_rows_are_grouped_and_the_method_in_question_comes_first(full_scores):
    order = ordered(full_scores, "other_model", "all")
    assert order[:3] == ["other_model", "scBIG", "scBIG_small"] and set(order[-3:]) == {"control", "mean", "shuffled"}
    shown = words(raw_table(full_scores, ["pearson_delta"], "all", "other_model"))
    places = [
        shown.index(w) for w in ("models", "other_model", "scBIG_small", "baselines", "low_rank", "negative controls")
    ]
    assert places == sorted(places) and shown.index("real cells") > shown.index("shuffled")


def test_intervals_seeds_and_the_positive_control_stand_in_the_raw_table(full_scores):
    found = rows(raw_table(full_scores, ["pearson_delta", "e_distance"], "all", "scBIG"))
    s = full_scores.summary.set_index(["method", "metric", "stratum"]).loc[("scBIG", "pearson_delta", "all")]
    numbers = [page.number(s[k]) for k in ("mean", "low", "high")]
    assert found["scBIG"][1] == f"{numbers[0]} {numbers[1]} … {numbers[2]} 3 seeds ± 0.010"
    c = full_scores.calibrated[(full_scores.calibrated["metric"] == "pearson_delta")]
    top = c[c["stratum"] == "all"]["positive"].iloc[0]
    # Of a metric that does not extend from half of the cells, the ceiling is on another scale than the scores.
    assert found["real cells"][1:] == [page.number(top), "–"]


def test_calibrated_scores_are_unclipped_and_the_gap_is_told_of_models(full_scores):
    found = rows(calibrated_scores(full_scores, "scBIG", "all"))
    c = full_scores.calibrated[full_scores.calibrated["stratum"] == "all"].set_index(["method", "metric"])
    ours, low = c.loc[("scBIG", "pearson_delta")], c.loc[("control", "pearson_delta")]
    assert found["scBIG"][1].startswith(f"{ours['calibrated']:.2f} {ours['low']:.2f} … {ours['high']:.2f} closes")
    assert low["calibrated"] < 0 and found["control"][1].startswith(f"−{abs(low['calibrated']):.2f} ")
    assert not any("closes" in " ".join(found[m]) for m in ("low_rank", "additive", "mean", "other_model"))
    assert "gap from low_rank" in found["method"][1]


def test_metrics_without_range_are_grey_and_the_reason_is_given(full_scores):
    weak = unusable(full_scores, "all")
    assert list(weak) == ["coexpression_error"]
    text = metrics(full_scores, "scBIG", "all")
    assert re.search(r'class="faded">coexpression_<wbr>error&nbsp;↓', text)
    assert f"coexpression_error is grey: {weak['coexpression_error']}." in words(text)
    table = rows(ceilings(full_scores, "scBIG", "all"))
    assert table["coexpression_error ↓"][-1] == f"no: {weak['coexpression_error']}"
    assert table["pearson_delta ↑"][-1] == "yes"


def test_every_stratum_has_both_tables(full_scores):
    said = words(strata(full_scores, "scBIG"))
    assert said.count("Calibrated") == said.count("As they are") == 2
    assert "both seen" in said and "one unseen" in said


def test_ceilings_list_conditions_from_the_highest(full_scores):
    text = ceilings(full_scores, "scBIG", "all")
    rows_of = re.findall(r"<title>(GENE[^:]*): scBIG ([^,]*), ceiling ([0-9.]*) ± 0.02, uncorrected ([0-9.]*)<", text)
    top = [float(r[2]) for r in rows_of]
    assert len(rows_of) == 29 and top == sorted(top, reverse=True)
    # Spearman-Brown.
    assert all(float(t) == pytest.approx(2 * float(h) / (1 + float(h)), abs=2e-3) for _, _, t, h in rows_of)
    assert "1 of 30 conditions have too few cells" in words(text)


def test_many_conditions_are_points_not_lines(full_scores, monkeypatch):
    monkeypatch.setattr("scbig.evaluation.sections._MOST_RUNGS", 10)
    text = ceilings(full_scores, "scBIG", "all")
    assert text.count("<circle data-k=") == 29 and "on the line, nothing is left to gain" in text


def test_the_ceiling_is_a_second_series_by_size_and_cells(full_scores, effect_scores):
    text = conditions(full_scores, "scBIG")
    assert text.count("<circle data-k=") == 30 + 2 * (30 + 29)
    assert text.count(">real cells</text>") == 2 and "real cells’ own" in text
    text = conditions(effect_scores, "scBIG")
    assert text.count("<circle data-k=") == 2 * 30 and ">real cells</text>" not in text


def test_all_pairs_are_compared_with_the_corrected_p(full_scores):
    found = rows(comparisons(full_scores, "scBIG", "all"))
    assert set(full_scores.methods) - {"scBIG"} <= set(found)
    t = row_of(full_scores, "scBIG", "scBIG_small", "pearson_delta")
    told = found["scBIG_small"][1]
    assert told.startswith(f"+{page.number(t['mean'])} =") and f"Holm {t['p_holm']:.3f}" in told
    assert "better" in found["low_rank"][1] and "p < 0.001 · Holm < 0.001" in found["low_rank"][1]
    nothing = dataclasses.replace(full_scores, tests=full_scores.tests.iloc[:0])
    assert "No paired tests of scBIG" in words(comparisons(nothing, "scBIG", "all"))


def test_the_console_has_a_calibrated_column_where_there_is_one(full_scores, effect_scores):
    table = console_table(full_scores)
    at = table[0].index("calibrated")
    assert table[0][at - 1] == "pearson_delta"
    c = full_scores.calibrated
    hit = c[(c["method"] == "low_rank") & (c["metric"] == "pearson_delta") & (c["stratum"] == "all")]
    assert dict(zip(full_scores.methods, (r[at] for r in table[1:]), strict=True))["low_rank"] == page.number(
        float(hit["calibrated"].iloc[0])
    )
    assert "calibrated" not in console_table(effect_scores)[0]
    assert all(len(r) == len(table[0]) for r in table)
