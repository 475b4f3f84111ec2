"""What the documents say about commands, settings, files and names must be so."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from scbig import baselines, cli, config, evaluation
from scbig.data import splits
from scbig.priors import embeddings
from scbig.run import STAGES

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "generated"} & set(page.parts)),
]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# Top folders whose files the documents name by path; run directories also have files, but not in these.
OURS = ("scbig", "configs", "scripts", "tests", "benchmarks", "docs")


def pages(*names):
    return pytest.mark.parametrize("page", names or PAGES, ids=lambda page: page.name)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """The command lines of shell text, continued lines joined, comments off, as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def check_scbig(words):
    """Parses one call of scbig and tries its settings and its configuration file."""
    known, rest = cli._parser().parse_known_args(words)
    changes = cli._settings_from(rest, cli._parser())
    named = getattr(known, "config", None)
    if named:
        assert (ROOT / named).is_file(), named
    settings = config.load(str(ROOT / named)) if named else config.default()
    config.override(settings, changes)


def check_script(module, words):
    """A script of the tree that mentions every option it is called with."""
    place = ROOT / module.replace(".", "/")
    text = (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")).read_text()
    assert all(f'"{word}"' in text for word in words if word.startswith("--")), (module, words)


@pages()
def test_shell_commands_are_real(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page.read_text(), "bash"):
        for words in commands(block):
            if words[0] == "scbig":
                check_scbig(words[1:])
            elif words[0] == "make":
                assert set(words[1:]) <= targets, words
            elif words[:2] == [".venv/bin/python", "-m"]:
                check_script(words[2], words[3:])
            else:
                assert words[0] == ".venv/bin/pytest" and (ROOT / words[1]).exists(), words


def test_the_check_of_commands_notices_mistakes():
    with pytest.raises(SystemExit):
        check_scbig(["sample", "--workdir", "x", "--cells", "5"])
    with pytest.raises(SystemExit):
        check_scbig(["predict"])
    with pytest.raises(config.InputError, match=r"flow\.step"):
        check_scbig(["run", "--workdir", "x", "--config.flow.step=5"])
    with pytest.raises(AssertionError):
        check_scbig(["run", "--workdir", "x", "--config", "configs/absent.py"])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_commands_in_configurations_are_real(file):
    docstring = file.read_text().split('"""')[1].replace("\\\n", " ")
    found = re.findall(r"^(?:Command: )?\s*scbig (.*)$|\(or: scbig (.*)\)$", docstring, re.MULTILINE)
    for line in (one or other for one, other in found):
        check_scbig(shlex.split(line))
    assert found or "make demo" in docstring


@pages()
def test_python_compiles(page):
    for number, block in enumerate(blocks(page.read_text(), "python")):
        compile(block, f"{page.name} block {number}", "exec")


@pages()
def test_python_imports_exist(page):
    """Names taken from scbig, and attributes of its packages that are used, are there."""
    for block in blocks(page.read_text(), "python"):
        space: dict = {}
        imports = [line for line in block.splitlines() if line.startswith(("from scbig", "import scbig"))]
        exec("\n".join(imports), space)
        for package in (name for name, value in space.items() if hasattr(value, "__path__") and "__" not in name):
            for attribute in re.findall(rf"\b{package}\.(\w+)\(", block):
                assert hasattr(space[package], attribute), f"{package}.{attribute}"


def anchors(text):
    """Names that GitHub gives the headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages()
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there.read_text()), target


@pages()
def test_files_named_exist(page):
    named = re.findall(rf"`((?:{'|'.join(OURS)})/[\w./*-]*)`", page.read_text())
    for name in named:
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("folder", ["docs", "docs/guides"])
def test_every_page_is_on_the_map(folder):
    index = (ROOT / folder / "index.md").read_text()
    tree = {
        line
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.DOTALL | re.MULTILINE)
        for line in block.split()
    }
    for page in (ROOT / folder).glob("*.md"):
        assert page.name == "index.md" or (f"({page.name})" in index and page.stem in tree), page.name


def test_errors_that_are_explained_exist():
    """Each line of the guide quotes a message that the code can give."""
    said = []
    for file in (ROOT / "scbig").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                said.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    text = (ROOT / "docs" / "guides" / "errors.md").read_text()
    quoted = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE) + re.findall(r"\*\*`(.+?)`\*\*", text)
    assert len(quoted) > 15
    assert [phrase for phrase in quoted if not any(phrase in message for message in said)] == []


def test_settings_are_all_described_with_their_defaults():
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (ROOT / "docs" / "config.md").read_text(), re.MULTILINE)
    told = dict(rows)
    assert len(told) == len(rows), "a setting is described twice"
    real = {name: repr(value) for name, value in config._flat(config.default())}
    assert told.keys() == real.keys(), told.keys() ^ real.keys()
    assert {n: (told[n], real[n]) for n in real if told[n] != real[n]} == {}, "default in docs, default in code"


def test_settings_named_in_prose_exist():
    fields = {name for name, _ in config._flat(config.default())}
    groups = {name.split(".")[0] for name in fields if "." in name}
    pattern = rf"`(?:--config\.)?((?:{'|'.join(sorted(groups))})\.(?!csv|md|py)[a-z_]+)(?:=[^`]*)?`"
    for page in PAGES:
        assert set(re.findall(pattern, page.read_text())) <= fields, page.name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("evaluation.md", (*evaluation.METRICS, *baselines.REGISTRY)),
        (
            "data.md",
            (*splits.RULES, *(file for stage in STAGES.values() for file in stage.writes if "." in file)),
        ),
        ("priors.md", tuple(embeddings._READERS)),
    ],
)
def test_names_are_all_described(page, names):
    text = (ROOT / "docs" / page).read_text()
    assert [name for name in names if f"`{name}`" not in text] == []
