import dataclasses

import pytest
from ml_collections import ConfigDict

from scbig import config
from scbig.errors import InputError
from scbig.nn import ConditionEncoderConfig, FlowNetConfig, GCAEConfig
from scbig.training import FlowConfig, PretrainConfig


def changed(*settings):
    return config.override(config.default(), list(settings))


@pytest.mark.parametrize(
    ("setting", "group", "field", "value"),
    [
        ("flow.steps=100", "flow", "steps", 100),
        ("flow.steps=1e3", "flow", "steps", 1000),
        ("flow.sigma=1", "flow", "sigma", 1.0),
        ("flow.learning_rate=3e-5", "flow", "learning_rate", 3e-5),
        ("flow.match_batch=True", "flow", "match_batch", True),
        ("data.path=a=b.h5ad", "data", "path", "a=b.h5ad"),
        ("data.target_sum=1e4", "data", "target_sum", "1e4"),
        ("data.control=", "data", "control", ""),
        ("priors.condition=a.npz,identity", "priors", "condition", ("a.npz", "identity")),
        ("priors.condition=('a.npz', 'b.npz',)", "priors", "condition", ("a.npz", "b.npz")),
        ("priors.condition=", "priors", "condition", ()),
    ],
)
def test_values_are_read_as_the_type_of_the_field(setting, group, field, value):
    found = changed(setting)[group][field]
    assert found == value and type(found) is type(value)


def test_settings_without_a_group_can_be_changed():
    found = changed("seed=7", "name=x", "holdout_fraction=0")
    assert (found.seed, found.name, found.holdout_fraction) == (7, "x", 0.0)


def test_the_original_is_left_alone_and_the_last_change_counts():
    original = config.default()
    before = original.to_dict()
    found = config.override(original, ["flow.steps=1", "flow.steps=2"])
    assert found.flow.steps == 2 and original.to_dict() == before


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("flow.stpes=1", "no setting flow.stpes; did you mean flow.steps?"),
        ("flow.step=1", "did you mean flow.steps?"),
        ("sead=1", "did you mean seed?"),
        ("zzzzzzzz=1", "no setting zzzzzzzz"),
        ("flow=3", "no setting flow"),
        ("flow.steps", "--config.flow.steps has no value; write --config.flow.steps=VALUE"),
        ("flow.steps=many", "--config.flow.steps=many: int expected, such as 5000"),
        ("flow.steps=1.5", "--config.flow.steps=1.5: int expected"),
        ("flow.steps=True", "--config.flow.steps=True: int expected"),
        ("flow.sigma=low", "--config.flow.sigma=low: float expected"),
        ("flow.match_batch=1", "--config.flow.match_batch=1: bool expected"),
        ("flow.match_batch=yes", "--config.flow.match_batch=yes: bool expected"),
    ],
)
def test_a_mistake_is_named(setting, says):
    with pytest.raises(InputError) as told:
        changed(setting)
    assert says in str(told.value) and "\n" not in str(told.value)


def write(path, body):
    path.write_text("from scbig import config\n\n\n" + body, encoding="utf-8")
    return str(path)


def test_a_file_is_loaded(tmp_path):
    body = "def get_config():\n    c = config.default()\n    c.flow.steps = 3\n    return c\n"
    assert config.load(write(tmp_path / "a.py", body)).flow.steps == 3


def test_a_file_that_is_absent_or_has_no_function_is_refused(tmp_path):
    with pytest.raises(InputError, match="no configuration file .*absent.py; see the folder configs/"):
        config.load(str(tmp_path / "absent.py"))
    with pytest.raises(InputError, match="empty.py has no function get_config"):
        config.load(write(tmp_path / "empty.py", ""))


def test_a_misspelt_field_in_a_file_is_refused(tmp_path):
    body = "def get_config():\n    c = config.default()\n    c.flow.stpes = 3\n    return c\n"
    with pytest.raises(InputError, match=r"a.py sets flow.stpes: .*did you mean flow.steps\?"):
        config.load(write(tmp_path / "a.py", body))


def test_a_file_that_leaves_fields_out_is_refused(tmp_path):
    body = "def get_config():\n    c = config.default()\n    del c.flow.steps\n    return c\n"
    with pytest.raises(InputError, match=r"a.py lacks flow.steps; begin with scbig.config.default\(\)"):
        config.load(write(tmp_path / "a.py", body))


def test_what_is_kept_with_a_run_comes_back(tmp_path):
    made = changed("flow.steps=9", "priors.semantic=a,b", "seed=4", "flow.sigma=0.25")
    (tmp_path / "c.json").write_text(config.as_json(made), encoding="utf-8")
    back = config.read_json(tmp_path / "c.json")
    assert back.to_dict() == made.to_dict() and isinstance(back.priors.semantic, tuple)


def test_fields_added_since_take_their_defaults_and_fields_gone_are_dropped(tmp_path):
    (tmp_path / "c.json").write_text('{"seed": 3, "flow": {"steps": 4, "gone": 1}, "lost": {"x": 1}}', encoding="utf-8")
    back = config.read_json(tmp_path / "c.json")
    wanted = changed("seed=3", "flow.steps=4")
    assert back.to_dict() == wanted.to_dict()


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"seed": 3,', encoding="utf-8")
    with pytest.raises(InputError, match="c.json is damaged"):
        config.read_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("group", "record", "elsewhere"),
    [
        ("gcae", GCAEConfig, set()),
        ("pretrain", PretrainConfig, set()),
        ("condition", ConditionEncoderConfig, {"n_contexts"}),
        ("velocity", FlowNetConfig, {"latent"}),
        ("flow", FlowConfig, set()),
    ],
)
def test_every_field_of_a_record_can_be_set_and_every_setting_reaches_it(group, record, elsewhere):
    settings = config.default()[group]
    fields = {field.name for field in dataclasses.fields(record)} - elsewhere
    assert fields == set(settings) - {"match_batch", "watch_conditions", "watch_cells"}
    made = record(**{name: settings[name] for name in fields})
    assert all(getattr(made, name) == settings[name] for name in fields)


def test_defaults_are_made_anew():
    config.default().flow.steps = 1
    assert config.default().flow.steps != 1
    assert isinstance(config.demo("x"), ConfigDict)
    assert config.demo("some/where").data.path.startswith("some/where")
