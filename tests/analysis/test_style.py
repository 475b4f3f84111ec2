"""Figures: the same file every time, settings that hold when ticks are drawn late, and cells that are outlined."""

import numpy as np
import pandas as pd

from scbig.analysis import style
from scbig.analysis.section import Figure


def heat():
    figure, ax = style.new(4, 3)
    table = pd.DataFrame([[1.0, -2.0], [np.nan, 0.5]], index=["a", "b"], columns=["x", "y"])
    style.heat(ax, table, "change", called=table > 0.7)
    return figure


def forest():
    figure, ax = style.new(4, 3)
    three = [0.1, 0.5], [-0.1, np.nan], [np.inf, np.nan]
    style.forest(
        ax, ["one", "two"], {"measured": three, "predicted": three}, "change", filled={"measured": [True, False]}
    )
    style.note(ax, "a remark")
    return figure


def test_figures_are_written_twice_the_same(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        for name, draw in (("heat", heat), ("forest", forest)):
            svg, png = style.save(Figure(name, "", draw), folder)
            assert (svg.name, png.name) == (f"{name}.svg", f"{name}.png")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_letters_stay_letters_and_no_global_setting_changes(tmp_path):
    from matplotlib import rcParams

    before = dict(rcParams)
    svg, _ = style.save(Figure("forest", "", forest), tmp_path)
    assert "a remark" in svg.read_text(encoding="utf-8")
    assert dict(rcParams) == before


def test_ticks_made_late_are_small():
    figure, ax = style.new()
    ax.set_xlim(0, 1000)
    figure.canvas.draw()
    assert {label.get_size() for label in ax.get_xticklabels()} == {7.0}


def test_heat_is_centred_outlined_and_grey_where_nothing_is_known():
    figure = heat()
    ax = figure.axes[0]
    image = ax.images[0]
    assert image.norm.vmin == -image.norm.vmax
    assert np.ma.getmaskarray(image.get_array()).tolist() == [[False, False], [True, False]]
    assert [(patch.get_x(), patch.get_y()) for patch in ax.patches] == [(-0.5, -0.5)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_forest_keeps_infinite_ends_within_the_axes():
    ax = forest().axes[0]
    low, high = ax.get_xlim()
    assert np.isfinite([low, high]).all()
    assert high < 1.0
