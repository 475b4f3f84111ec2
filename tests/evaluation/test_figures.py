"""Figures: what is drawn is where it belongs, tells its name and stays within its frame."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from scbig.evaluation import Curves, figures, plot

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Places of points by what their titles begin with."""
    found: dict[str, list[tuple[float, float]]] = {}
    for c in ElementTree.fromstring(svg).iter(f"{SVG}circle"):
        title = c.find(f"{SVG}title")
        if title is not None:
            found.setdefault(title.text.split(":")[0], []).append((float(c.get("cx")), float(c.get("cy"))))
    return found


def texts(svg: str) -> list[str]:
    return [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_ticks_are_round_and_within_the_limits():
    s = plot.scale([0.13, 0.87], 0.0, 100.0)
    assert s.ticks(4) == pytest.approx([0.25, 0.5, 0.75])
    assert s.ticks(5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert plot.tick_text(s.ticks(5)) == ["0.2", "0.4", "0.6", "0.8"]
    assert plot.tick_text([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    assert plot.Scale(3.0, 3000.0, 0.0, 1.0, True).ticks(5) == pytest.approx([10.0, 100.0, 1000.0])
    assert plot.Scale(3.0, 150.0, 0.0, 1.0, True).ticks(5) == pytest.approx([5.0, 10.0, 20.0, 50.0, 100.0])


@pytest.mark.parametrize("values", [[], [np.nan], [2.0], [0.0, 0.0], [-1e-9, 1e-9], [1e7, 3e7]])
def test_any_values_have_a_scale_with_ticks(values):
    s = plot.scale(values, 10.0, 90.0)
    assert s.low < s.high and s(s.low) == pytest.approx(10.0) and s(s.high) == pytest.approx(90.0)
    assert 1 <= len(s.ticks(5)) <= 7
    assert len(set(plot.tick_text(s.ticks(5)))) == len(s.ticks(5))


def test_a_logarithmic_scale_makes_equal_ratios_equal():
    s = plot.Scale(1.0, 100.0, 0.0, 50.0, True)
    assert s(10.0) == pytest.approx(25.0) and s(100.0) == pytest.approx(50.0)


def test_long_names_keep_both_ends_and_fit():
    name = "kernel_ridge-a_source_with_a_long_name"
    short = plot.shortened(name, 100.0)
    assert short.startswith("kernel") and short.endswith("name") and "…" in short
    assert plot.width_of(short) <= 100.0 and plot.shortened("short", 100.0) == "short"


def test_every_condition_is_a_point_that_tells_its_name():
    x, y = np.array([0.1, 0.5, np.nan, 0.9]), np.array([0.2, 0.4, 0.3, 0.8])
    svg = figures.against(x, y, ["A", "B<", "C", "D"], "x", "y", True, "text")
    found = circles(svg)
    assert set(found) == {"A", "B<", "D"}
    # To the right is more, upwards is more.
    assert found["A"][0][0] < found["B<"][0][0] < found["D"][0][0]
    assert found["A"][0][1] > found["B<"][0][1] > found["D"][0][1]
    assert re.findall(r'data-k="(\d)"', svg) == ["0", "1", "3"]


def test_a_point_on_the_diagonal_lies_on_the_line():
    svg = figures.against(np.array([0.2, 0.6, 0.9]), np.array([0.2, 0.5, 0.1]), list("ABC"), "x", "y", True, "text")
    x1, y1, x2, y2 = map(float, re.search(rf'd="M(\S+) (\S+)L(\S+) (\S+)" stroke="{plot.PALE}"', svg).groups())
    ((px, py),) = circles(svg)["A"]
    assert (px - x1) / (x2 - x1) == pytest.approx((py - y1) / (y2 - y1), abs=0.01)


def test_a_second_series_shares_the_names_and_has_a_legend():
    x, y, top = np.array([1.0, 10.0, 100.0]), np.array([0.1, 0.2, 0.3]), np.array([0.5, np.nan, 0.9])
    svg = figures.against(x, y, list("ABC"), "n", "ours", False, "t", figures.Series("real cells", top), True)
    found = circles(svg)
    assert {k: len(v) for k, v in found.items()} == {"A": 2, "B": 1, "C": 2}
    assert {"ours", "real cells"} <= set(texts(svg))
    # Equal ratios of cells are equally far apart.
    a, b, c = (found[k][-1][0] for k in "ABC")
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_names_do_not_cover_one_another_and_stay_inside():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(60, 300, 200), rng.uniform(20, 240, 200)
    frame = plot.Frame(plot.Scale(0.0, 1.0, 50.0, 320.0), plot.Scale(0.0, 1.0, 250.0, 10.0))
    svg = plot.svg(
        [plot.names(x, y, [f"GENE{i}+GENE{i + 1}" for i in range(200)], list(range(30)), frame)], 340, 300, "t"
    )
    boxes = []
    for t in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        width = plot.width_of(t.text, 10.5)
        left = float(t.get("x")) - width * {"start": 0, None: 0, "middle": 0.5, "end": 1}[t.get("text-anchor")]
        boxes.append((left, float(t.get("y")) - 9, left + width, float(t.get("y")) + 2))
    assert len(boxes) >= 10
    for i, a in enumerate(boxes):
        assert a[0] >= 49.9 and a[2] <= 320.1
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])


def test_agreement_draws_every_gene_once_and_marks_the_perturbed():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=500).astype(np.float32)
    predicted = (0.5 * observed + rng.normal(size=500)).astype(np.float32)
    genes = [f"G{i}" for i in range(500)]
    svg = figures.agreement(observed, predicted, genes, ("G7",), "text")
    root = ElementTree.fromstring(svg)
    dots = [p for p in root.iter(f"{SVG}path") if "h0" in p.get("d")]
    places = {m for p in dots for m in re.findall(r"M([^M]*)h0", p.get("d"))}
    diamonds = [p for p in root.iter(f"{SVG}path") if p.find(f"{SVG}title") is not None]
    assert [d.find(f"{SVG}title").text.startswith("G7 (perturbed)") for d in diamonds] == [True]
    named = circles(svg)
    # The largest can be pointed at; what is drawn as strokes has half-pixel places, some of them shared.
    largest = np.array(genes)[np.argsort(-np.abs(observed))[:30]]
    assert set(largest) - {"G7"} <= set(named) and len(named) == 39
    assert 400 < len(places) <= 460


def test_a_page_of_thousands_of_genes_stays_small():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20000)
    svg = figures.agreement(x, x + rng.normal(size=20000), [f"G{i}" for i in range(20000)], (), "text")
    assert len(svg) < 300_000


def test_forest_orders_rows_downwards_and_marks_guide_and_ceiling():
    rows = [("a", 0.5, 0.4, 0.6, "primary"), ("b<", 0.3, np.nan, np.nan, "baseline"), ("c", 0.1, 0.0, 0.2, "negative")]
    svg = figures.forest(rows, 0.0, 0.9, "text")
    assert [t for t in texts(svg) if t in ("a", "b<", "c")] == ["a", "b<", "c"]
    assert f'stroke="{plot.GREEN}" stroke-width="1.6" stroke-dasharray' in svg
    titles = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == ["a: 0.5 (0.4 to 0.6)", "b<: 0.3", "c: 0.1 (0 to 0.2)"]
    assert f'stroke="{plot.GREEN}"' not in figures.forest(rows, 0.0, None, "text")


def test_a_ladder_tells_score_and_ceiling_of_every_condition():
    svg = figures.ladder([("A", 0.9, 0.02, 0.8, 0.5), ("B", 0.7, np.nan, 0.6, np.nan)], "ours", "r", "text")
    titles = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == [
        "A: ours 0.5, ceiling 0.9 ± 0.02, uncorrected 0.8",
        "B: ours nan, ceiling 0.7 ± nan, uncorrected 0.6",
    ]
    assert "nan" not in re.sub(r"<title>.*?</title>", "", svg)


def test_curves_pass_through_their_values_and_skip_what_is_missing():
    data = Curves({"a": ([1, 2, 3], [3.0, np.nan, 1.0]), "b": ([1, 3], [1.0, 2.0])}, y_label="loss", log_y=True, mark=2)
    svg = figures.curves(data, "text")
    assert "nan" not in svg and {"a", "b", "kept", "loss", "step"} <= set(texts(svg))
    assert figures.curves(Curves({}), "text").startswith("<svg")
    assert figures.curves(Curves({"a": ([1, 2], [0.0, -1.0])}, log_y=True), "text").startswith("<svg")


def test_what_a_figure_shows_is_told_to_those_who_cannot_see_it():
    svg = figures.forest([("a", 0.5, 0.4, 0.6, "model")], None, None, 'a "quoted" <text>')
    assert ElementTree.fromstring(svg).get("aria-label") == 'a "quoted" <text>'
