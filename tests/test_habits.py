"""What keeps the folder in order: workflow, hooks, citation, and a public API that says its types."""

import ast
import configparser
import datetime
import re
from pathlib import Path

import pytest
import yaml

import scbig

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_yaml_file_loads():
    files = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) > 5
    assert all(isinstance(yaml.safe_load(file.read_text()), dict) for file in files)


def test_the_workflow_runs_every_python_that_is_promised(workflow, setup):
    promised = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert setup["options"]["python_requires"] == f">={promised[0]}"
    assert setup["mypy"]["python_version"] == promised[0]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_call_targets_that_exist(file):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"].split() for step in steps(yaml.safe_load(file.read_text())) if "run" in step]
    assert commands
    for words in commands:
        assert words[0] == "make" and set(words[1:]) <= targets, words


def test_the_workflow_may_only_read_and_is_cancelled_by_a_newer_one(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())
    cached = [step["with"] for step in steps(workflow) if "setup-python" in step.get("uses", "")]
    assert cached and all(each["cache"] == "pip" for each in cached)


def test_hooks_call_the_tools_of_lint():
    hooks = [
        h for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for h in repo["hooks"]
    ]
    ours = [hook["entry"].split()[0] for hook in hooks if "entry" in hook]
    lint = re.search(r"^lint:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert {Path(each).name for each in ours} == {Path(words.split()[0]).name for words in lint.splitlines()}
    assert {"end-of-file-fixer", "check-yaml"} <= {hook["id"] for hook in hooks}


def test_issue_forms_ask_for_version_and_device():
    forms = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert {"bug", "wrong_score", "feature", "config"} == set(forms)
    for name in ("bug", "wrong_score", "feature"):
        assert {"name", "description", "body"} <= forms[name].keys()
        ids = [part["id"] for part in forms[name]["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        assert name == "feature" or {"version"} <= set(ids)
    assert {"command", "error", "device"} <= {part["id"] for part in forms["bug"]["body"]}


def test_the_citation_is_whole():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= cited.keys()
    assert cited["version"] == scbig.__version__ and cited["license"] == "Apache-2.0" and cited["type"] == "software"
    for author in cited["authors"]:
        assert "name" in author or {"family-names", "given-names"} <= author.keys()
    released = cited.get("date-released")
    assert released is None or isinstance(released, datetime.date)


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert versions[0] == scbig.__version__ and len(versions) == len(set(versions))
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)", text, re.MULTILINE)) <= kinds
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def public():
    """Functions that modules name in ``__all__``, and the public methods of classes; read, not imported."""
    for file in sorted((ROOT / "scbig").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        offered = set(ast.literal_eval(named[0])) if named else set()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in offered:
                yield f"{file.relative_to(ROOT)}: {node.name}", node
            elif isinstance(node, ast.ClassDef) and node.name in offered:
                for each in node.body:
                    if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                        yield f"{file.relative_to(ROOT)}: {node.name}.{each.name}", each


def test_the_public_api_says_its_types():
    lacking, offered = [], list(public())
    for name, node in offered:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare = [p.arg for p in given if p is not None and p.annotation is None and p.arg not in ("self", "cls")]
        bare += ["return"] if node.returns is None else []
        lacking += [f"{name}: {', '.join(bare)}"] if bare else []
    assert len(offered) > 300
    assert lacking == []


def test_what_the_type_checker_skips_is_there(setup):
    """A name that is gone, or spelled wrong, would hide nothing and mislead readers."""
    for section in (name for name in setup.sections() if name.startswith("mypy-")):
        for module in section.removeprefix("mypy-").split(","):
            path = ROOT / module.strip().removesuffix(".*").replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), module
