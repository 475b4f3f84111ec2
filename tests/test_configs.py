"""The files in configs/, and the settings that messages and documents tell users to change."""

import re
from pathlib import Path

import pytest

from scbig import config

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.py"))
KNOWN = dict(config._flat(config.default()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_loads_with_the_fields_of_the_default_and_their_types(file):
    found = dict(config._flat(config.load(str(file))))
    assert found.keys() == KNOWN.keys()
    wrong = {name for name, value in found.items() if type(value) is not type(KNOWN[name])}
    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_states_the_command_that_runs_it(file):
    text = file.read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    assert re.search(r"^Command: +\S", docstring, re.MULTILINE)
    assert f"configs/{file.relative_to(ROOT / 'configs')}" in docstring or file.stem == "demo"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_survives_being_kept_with_a_run(file, tmp_path):
    loaded = config.load(str(file))
    (tmp_path / "config.json").write_text(config.as_json(loaded), encoding="utf-8")
    assert config.read_json(tmp_path / "config.json").to_dict() == loaded.to_dict()


def test_the_demo_file_is_the_demo():
    loaded = config.load(str(ROOT / "configs/demo.py"))
    assert loaded.to_dict() == config.demo("runs/demo").to_dict()


def test_there_are_configurations():
    assert {"demo", "norman_paper", "papalexi"} <= {file.stem for file in FILES}


SPEAKING = [
    *(ROOT / "scbig").rglob("*.py"),
    *FILES,
    *(ROOT / "scripts").glob("*"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "README.md",
]


@pytest.mark.parametrize("file", SPEAKING, ids=lambda file: str(file.relative_to(ROOT)))
def test_settings_that_users_are_told_to_change_exist(file):
    text = file.read_text(encoding="utf-8")
    named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)\b(?![{.])", text)) - {"any.field", "group.field"}
    groups = {name.split(".")[0] for name in KNOWN if "." in name}
    # A group alone names the group; a name cut by a placeholder cannot be told.
    unknown = {n for n in named if n not in KNOWN and n not in groups and not n.endswith("_")}
    assert not unknown
