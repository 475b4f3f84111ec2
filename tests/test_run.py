"""The run directory: the chain of hashes, what is refused, what is forgotten."""

import json

import pytest

from scbig import config
from scbig.errors import InputError
from scbig.files import digest
from scbig.run import STAGES, Run, Stage

ONE = Stage("one", (), ("seed", "size"), ("one.txt", "folder"))
TWO = Stage("two", ("one",), ("seed",), ("two.txt",))
THREE = Stage("three", ("two",), (), ("three.txt",))
SETTINGS = {"seed": 0, "size": {"width": 4, "names": ["a", "b"]}}


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr("scbig.run.STAGES", {stage.name: stage for stage in (ONE, TWO, THREE)})


def do(run, stage, settings=SETTINGS, text="made", inputs=None):
    inputs = run.outputs_of(stage.reads) if inputs is None else inputs
    chosen = {name: settings[name] for name in stage.settings}
    with run.stage(stage, chosen, inputs, "{}\n") as remarks:
        for name in stage.writes:
            target = run.path(name)
            if name == "folder":
                target.mkdir(exist_ok=True)
                target = target / "inside"
            target.write_text(f"{text} {name}")
        remarks["note"] = text


@pytest.fixture
def run(stages, tmp_path):
    """A run in which all three stages are done."""
    run = Run(tmp_path / "run")
    for stage in (ONE, TWO, THREE):
        do(run, stage)
    return run


def state(run, stage, settings=SETTINGS, inputs=None):
    inputs = run.outputs_of(stage.reads) if inputs is None else inputs
    return run.state_of(stage, {name: settings[name] for name in stage.settings}, inputs)


def everything(run):
    return digest(run.folder)


def test_a_new_directory_holds_nothing_and_asking_makes_nothing(stages, tmp_path):
    run = Run(tmp_path / "run")
    assert state(run, ONE) == "new" and not run.is_done("one") and run.provenance == {"stages": {}}
    assert not run.folder.exists()


def test_what_is_done_is_done(run):
    before = everything(run)
    assert [state(run, stage) for stage in (ONE, TWO, THREE)] == ["done"] * 3
    run.require(("one", "two", "three"))
    assert everything(run) == before


def test_the_record_says_what_was_made_from_what(run):
    record = run.provenance["stages"]
    assert record["one"]["outputs"] == {name: digest(run.path(name)) for name in ONE.writes}
    assert record["two"]["inputs"] == record["one"]["outputs"]
    assert record["two"]["settings"] == {"seed": 0} and record["two"]["remarks"] == {"note": "made"}
    assert {"python", "jax", "scbig"} <= record["one"]["software"].keys()
    assert not run.provenance["begun"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SETTINGS | {"seed": 1}, "stage one was run with seed=0 (now 1)"),
        (SETTINGS | {"size": {"width": 5, "names": ["a", "b"]}}, "size.width=4 (now 5)"),
        (SETTINGS | {"size": {"width": 4, "names": ["a"]}}, "size.names=['a', 'b'] (now ['a'])"),
        (SETTINGS | {"size": {"names": ["a", "b"]}}, "size.width=4 (now None)"),
        (SETTINGS | {"size": SETTINGS["size"] | {"new": 3}}, "size.new=None (now 3)"),
    ],
)
def test_other_settings_are_refused_with_the_old_and_the_new(run, settings, says):
    before = everything(run)
    with pytest.raises(InputError) as told:
        state(run, ONE, settings)
    assert says in str(told.value) and "`scbig one --force`" in str(told.value) and "\n" not in str(told.value)
    assert everything(run) == before


def test_a_list_and_a_tuple_are_the_same_setting(run):
    assert state(run, ONE, SETTINGS | {"size": {"width": 4, "names": ("a", "b")}}) == "done"


def test_a_setting_that_was_added_since_is_taken_to_have_been_its_default(tmp_path):
    run, stage = Run(tmp_path), Stage("train", (), ("flow",), ("a",))
    now = config.default().flow.to_dict()
    then = {name: value for name, value in now.items() if name != "sigma"}
    with run.stage(stage, {"flow": then}, {}, "{}"):
        run.path("a").write_text("")
    assert run.state_of(stage, {"flow": now}, {}) == "done"
    with pytest.raises(InputError, match=rf"flow.sigma={now['sigma']} \(now 9.0\)"):
        run.state_of(stage, {"flow": now | {"sigma": 9.0}}, {})


def test_settings_of_other_stages_do_not_matter(run):
    assert state(run, TWO, SETTINGS | {"size": {}}) == "done"


@pytest.mark.parametrize("file", ["one.txt", "folder/inside"])
def test_an_output_that_changed_is_refused_naming_its_stage(run, file):
    run.path(file).write_text("edited")
    with pytest.raises(InputError, match=r"changed since stage one wrote it; rerun `scbig one --force`") as told:
        run.require(TWO.reads)
    assert file.split("/")[0] in str(told.value)
    run.require(TWO.reads, checked=False)  # present, at least


def test_an_output_that_is_gone_is_refused(run):
    run.path("one.txt").unlink()
    for check in (lambda: run.require(("one",), checked=False), lambda: state(run, ONE)):
        with pytest.raises(InputError, match=r"one.txt is gone; rerun `scbig one --force`"):
            check()


def test_a_stage_that_was_rerun_makes_later_ones_stale(run):
    do(run, ONE, text="made otherwise")
    run.require(TWO.reads)
    with pytest.raises(InputError, match=r"one.txt, folder changed since stage two was run; rerun `scbig two --force`"):
        state(run, TWO)


def test_a_stage_rerun_to_the_same_bytes_does_not(run):
    do(run, ONE)
    assert state(run, TWO) == "done"


def test_a_missing_stage_is_named(stages, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match=r"stage one has not been run; run `scbig one` first"):
        run.require(TWO.reads)
    assert not run.folder.exists()


def test_forgetting_takes_what_depends_on_it_along(run):
    assert run.forget("two") == ["two", "three"]
    assert list(run.provenance["stages"]) == ["one"]
    assert state(run, ONE) == "done" and state(run, TWO) == "new"
    assert run.path("two.txt").exists()  # until it is replaced


def test_forgetting_what_never_was_is_nothing(stages, tmp_path):
    assert Run(tmp_path / "run").forget("one") == []


def test_a_stage_that_fails_is_not_done_and_the_record_before_it_stays(run):
    run.forget("two")
    with pytest.raises(ZeroDivisionError), run.stage(TWO, {"seed": 0}, {}, "{}"):
        raise ZeroDivisionError
    assert not run.is_done("two") and run.is_done("one") and state(run, TWO) == "new"


def test_a_stage_that_did_not_write_its_file_is_not_done(stages, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(FileNotFoundError), run.stage(ONE, SETTINGS, {}, "{}"):
        pass
    assert not run.is_done("one")


def test_a_stage_that_failed_can_be_tried_with_other_settings(run):
    # The message of the failure tells users to change a setting: they must not be held to the old one.
    run.forget("two")
    with pytest.raises(InputError), run.stage(TWO, {"seed": 0}, run.outputs_of(("one",)), "{}"):
        raise InputError("change the seed")
    assert state(run, TWO, {"seed": 1}) == "new"


@pytest.mark.parametrize(("name", "folder"), [("pretrain", "gcae/checkpoints"), ("train", "flow/checkpoints")])
def test_checkpoints_bind_the_settings_of_a_stage_that_was_begun(tmp_path, name, folder):
    run, stage = Run(tmp_path), STAGES[name]
    settings = dict.fromkeys(stage.settings, 0)
    with pytest.raises(KeyboardInterrupt), run.stage(stage, settings, {}, "{}"):
        run.path(folder).mkdir(parents=True)
        raise KeyboardInterrupt
    other = settings | {"seed": 1}
    assert run.state_of(stage, other, {}) == "new"
    run.path(
        folder,
    ).joinpath("50").mkdir()
    assert run.state_of(stage, settings, {}) == "new"
    with pytest.raises(InputError, match=rf"stage {name} was run with seed=0 \(now 1\)"):
        run.state_of(stage, other, {})
    with pytest.raises(InputError, match="latents changed since"):
        run.state_of(stage, settings, {"latents": "another"})
    assert run.forget(name) == [name]
    assert not run.path(folder).exists() and run.state_of(stage, other, {}) == "new"


@pytest.mark.parametrize("text", ["", "{", '{"stages": ', "[]", "{}", '{"stages": 3}', "null"])
def test_a_damaged_record_is_refused_and_left_as_it_is(run, text):
    run.path("provenance.json").write_text(text)
    with pytest.raises(InputError, match=r"provenance.json is damaged .*--workdir") as told:
        state(run, ONE)
    assert "\n" not in str(told.value) and run.path("provenance.json").read_text() == text


def test_the_record_is_replaced_whole(run, monkeypatch):
    before = run.path("provenance.json").read_text()

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", fails)
    with pytest.raises(OSError, match="disk full"):
        run.forget("one")
    monkeypatch.undo()
    assert run.path("provenance.json").read_text() == before
    assert not [p for p in run.folder.iterdir() if p.name.startswith(".")]


def test_the_real_stages_read_from_stages_before_them_and_write_apart():
    seen = set()
    for name, stage in STAGES.items():
        assert stage.name == name and set(stage.reads) <= seen
        seen.add(name)
    files = [file for stage in STAGES.values() for file in stage.writes]
    assert len(set(files)) == len(files)
