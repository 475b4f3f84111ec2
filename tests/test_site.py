"""The pages of the site that are made from the code; building the site itself is ``make docs``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from jaxtyping import Float

from scbig import cli, evaluation, losses, priors

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("scbig_site_reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry(reference):
    for module in (evaluation, losses, priors):
        page = reference._page(module)
        for name in module.__all__:
            assert f":: {module.__name__}.{name}\n" in page, name


def test_every_part_of_the_package_has_a_page(reference):
    names = {module.__name__ for module in reference._modules()}
    assert names >= {"scbig.data", "scbig.priors", "scbig.predict", "scbig.analysis", "scbig.config", "scbig.errors"}
    assert not {"scbig.cli", "scbig.commands"} & names
    contents = reference._contents(reference._modules())
    assert all(f"   {name}\n" in contents for name in names)


def test_constants_say_what_they_hold(reference):
    lines = "\n".join(reference._constant(evaluation, "METRICS"))
    assert "Keys: " in lines and "``pearson_delta``" in lines


def test_every_command_and_option_is_told(reference):
    page = reference._commands()
    choices = next(action for action in cli._parser()._actions if action.dest == "command").choices
    for name, command in choices.items():
        assert f"\n## scbig {name}\n" in page and f"(#scbig-{name})" in page
        section = page.split(f"\n## scbig {name}\n")[1].split("\n## ")[0]
        hidden = [action for action in command._actions if action.help == "==SUPPRESS=="]
        for action in (each for each in command._actions if each not in hidden):
            assert all(option in section for option in action.option_strings), (name, action)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("../data.md#splits", "../data.md#splits"),
        ("../../README.md", "../index.md"),
        ("../../CONTRIBUTING.md#tests", "../generated/contributing.md#tests"),
        ("../../notebooks/01_quick_start.ipynb", "../generated/notebooks/01_quick_start.ipynb"),
        ("https://example.org/a.md", "https://example.org/a.md"),
        ("#here", "#here"),
    ],
)
def test_links_lead_to_the_same_thing_on_the_site(reference, link, told):
    guides = ROOT / "docs" / "guides"
    assert reference._rewrite(f"See [it]({link}).", guides, guides) == f"See [it]({told})."


def test_other_files_of_the_repository_can_be_downloaded_and_folders_are_named(reference):
    guides = ROOT / "docs" / "guides"
    text = "[`a file`](../../benchmarks/results/judge.md), [those](../../configs), ![p](../pipeline.svg)"
    told = "{download}`a file <../../benchmarks/results/judge.md>`, those, ![p](../pipeline.svg)"
    assert reference._rewrite(text, guides, guides) == told


def test_links_of_a_page_that_moved(reference):
    made = ROOT / "docs" / "generated"
    assert reference._rewrite("[a](docs/data.md) [b](README.md)", ROOT, made) == "[a](../data.md) [b](../index.md)"


def test_code_is_not_taken_for_links(reference):
    text = "```python\nx[0](../../README.md)\n```\n"
    assert reference._rewrite(text, ROOT / "docs" / "guides", ROOT / "docs" / "guides") == text


def given(x: Float[np.ndarray, "cells genes"], /, y: int = 3, *rest: str, z: float | None = None) -> list[int]:
    return []


class Pair(NamedTuple):
    first: int


@dataclass
class Box:
    size: int

    def grown(self, by: int) -> Box:
        return self


def test_signatures_keep_their_shapes(reference):
    told = reference.plain_signature(None, "function", "given", given, None, None, None)
    shown = "(x: Float[np.ndarray, 'cells genes'], /, y: int = 3, *rest: str, z: float | None = None)"
    assert told == (shown, "list[int]")
    assert reference.plain_signature(None, "method", "Box.grown", Box.grown, None, None, None) == ("(by: int)", "Box")
    assert reference.plain_signature(None, "function", "none", lambda: 0, None, None, None) == ("()", None)


def test_keyword_only_arguments_are_marked(reference):
    def only(a, *, b=1): ...

    assert reference.plain_signature(None, "function", "only", only, None, None, None)[0] == "(a, *, b=1)"


def test_fields_of_tuples_are_left_to_their_class(reference):
    assert reference.skip_field(None, "class", "first", Pair.__dict__["first"], False, None)
    assert reference.skip_field(None, "class", "grown", Box.grown, False, None) is None


def test_bars_are_those_of_formulas(reference):
    lines = ["|z| of ``|x|``"]
    reference.no_substitutions(None, "function", "f", None, None, lines)
    assert lines == [r"\|z\| of ``|x|``"]
