"""The precision of products, and programs that are kept compiled."""

import json

import jax
import jax.numpy as jnp
import pytest

from scbig import config, ot, programs, stages
from scbig.errors import InputError
from scbig.run import STAGES


def test_precision_is_refused_where_the_device_would_not_act_on_it():
    assert not programs.multiplies_in_bfloat16()
    with pytest.raises(InputError, match="would multiply in float32 all the same"):
        programs.resolve_precision("bfloat16")
    with pytest.raises(InputError, match="precision=half: there are auto, float32, bfloat16"):
        programs.resolve_precision("half")
    with programs.precision("auto") as found:
        assert found == "float32" and jax.config.jax_default_matmul_precision is None


def test_products_are_bfloat16_and_distances_stay_exact(monkeypatch):
    monkeypatch.setattr(programs, "multiplies_in_bfloat16", lambda: True)
    x = jnp.ones((4, 3))

    def program(function):
        return jax.jit(function).lower(x, x).as_text()

    with programs.precision("bfloat16") as found:
        assert found == "bfloat16"
        plain, distances = program(lambda a, b: a @ b.T), program(lambda a, b: ot.squared_distances(a, b))
        with programs.exact():
            decided = program(lambda a, b: a @ b.T * 2)
    assert "lhs_precision_type = bf16" in plain and "accumulation_type = f32" in plain and "xbf16" not in plain
    for text in (distances, decided):
        assert "precision = [HIGHEST, HIGHEST]" in text and "bf16" not in text
    assert "bf16" not in program(lambda a, b: a @ b.T * 3)


def test_training_depends_on_precision_and_runs_without_the_setting_are_read(copy_of_run):
    assert [name for name, stage in STAGES.items() if "precision" in stage.settings] == ["pretrain", "train"]
    settings = config.read_json(copy_of_run / "config.json")
    provenance = json.loads((copy_of_run / "provenance.json").read_text())
    for name in ("pretrain", "train"):
        del provenance["stages"][name]["settings"]["precision"]
    (copy_of_run / "provenance.json").write_text(json.dumps(provenance))
    stages.execute(copy_of_run, settings, ("train",))
    settings.precision = "float32"
    with pytest.raises(InputError, match=r"precision='auto' \(now 'float32'\)"):
        stages.execute(copy_of_run, settings, ("train",))


# ------------------------------------------------------------------------------------------- compiled programs


@pytest.fixture
def no_cache():
    """JAX without a folder of compiled programs; afterwards as before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_where_the_user_says(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.keep_compiled() == ""
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/scbig/compiled/jax-{jax.__version__}-")
    first = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    # What is set already, by the environment or by an earlier command, stays.
    assert programs.keep_compiled() == "" and jax.config.jax_compilation_cache_dir == first
    assert programs.keep_compiled(str(tmp_path / "mine")) == ""
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/mine/")
    assert programs.keep_compiled("none") == "" and jax.config.jax_compilation_cache_dir is None
    (tmp_path / "file").write_text("")
    line = programs.keep_compiled(str(tmp_path / "file"))
    assert line.startswith("compiled programs are not kept") and "\n" not in line
    assert jax.config.jax_compilation_cache_dir is None


def test_a_kept_program_gives_the_same_bits(python, tmp_path):
    code = """
import json, sys, jax, jax.numpy as jnp, numpy as np
from scbig import programs
programs.keep_compiled(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
step = jax.jit(lambda w, k: jax.grad(lambda w: jnp.sum(jnp.tanh(jax.random.normal(k, (64, 32)) @ w) ** 3))(w))
w = jax.random.normal(jax.random.key(1), (32, 32))
print(json.dumps([any(hits), np.asarray(step(w, jax.random.key(0))).tobytes().hex(), any(hits)]))
"""
    (_, cold, hit), (_, warm, again) = python(code, tmp_path), python(code, tmp_path)
    assert not hit and again and cold == warm and list(tmp_path.glob("jax-*/*"))
