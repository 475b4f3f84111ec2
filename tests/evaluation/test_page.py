"""Pieces of the page: tables, numbers, sections, and the script that names a point."""

import re
import shutil
import subprocess

import pytest

from scbig.evaluation import page, render


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (0.00234, "0.0023"),
        (-0.5, "−0.500"),
        (float("nan"), "–"),
        (12.34, "12.3"),
        (2e-5, "2.0e−05"),
    ],
)
def test_numbers(value, text):
    assert page.number(value) == text


def test_a_minus_without_a_number_is_not_shown():
    assert page.number(-0.0) == "0.000"


def test_a_table_has_headings_between_rows_and_marks_what_it_is_told():
    text = page.table(["a", "b"], ["<i>group</i>", ["1", "2"], ["3", "4"]], text=(1,), marked=(2,), faded=(1,))
    assert '<tr class="group"><td><i>group</i></td><td></td></tr>' in text
    assert '<tr><td>1</td><td class="text faded">2</td></tr>' in text
    assert "<tr class=primary><td>3</td>" in text
    assert '<th scope="col" class="text faded">b</th>' in text


def test_a_row_of_another_length_is_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        page.table(["a", "b"], [["1"]])


def test_contents_link_to_the_sections_that_are_there():
    parts = [page.section("Left out, & why", "x"), "", page.section("Provenance", "y")]
    links = re.findall(r'href="#([^"]*)">([^<]*)<', page.contents(parts))
    assert links == [("left-out----why", "Left out, &amp; why"), ("provenance", "Provenance")]
    assert all(f'id="{anchor}"' in "".join(parts) for anchor, _ in links)


def test_names_break_where_they_may_and_are_escaped():
    assert page.name_of("kernel_ridge-<b>") == "kernel_<wbr>ridge-<wbr>&lt;b&gt;"


def test_what_belongs_on_paper_is_told_from_what_does_not():
    assert '<details class="screen">' in page.folded("a", "b")
    assert '<details class="paper">' in page.folded("a", "b", paper=True)


def test_only_figures_with_points_to_pick_have_a_line_for_names():
    with_points, plain = '<svg class="pick"></svg>', "<svg></svg>"
    assert page.figures([("a", "", with_points), ("b", "", plain)]).count('class="told"') == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page in")
def test_a_click_names_the_condition_in_a_browser(full_scores, tmp_path):
    """Without network, without a mouse: a click near a point of the first figure of conditions."""
    click = """<script>
    var p=document.querySelector('svg.pick [data-k="3"]'),b=p.getBoundingClientRect();
    p.ownerSVGElement.dispatchEvent(new MouseEvent('click',{clientX:b.left+b.width/2,clientY:b.top+b.height/2}));
    document.title='marked '+document.querySelectorAll('.on').length;
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(render(full_scores).replace("</body>", click), encoding="utf-8")
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=2000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = re.findall(r'<p class="told"[^>]*>([^<]*)</p>', done.stdout)
    name = full_scores.conditions["condition"][3]
    assert told[0].startswith(f"{name}: "), done.stderr[-2000:]
    # The same condition is marked in the other two figures, where real cells have a point of their own.
    assert "<title>marked 5</title>" in done.stdout
