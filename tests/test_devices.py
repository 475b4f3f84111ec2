"""Devices and processes; what needs several devices runs in processes of its own."""

import json
import os
import socket
import subprocess
import sys

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbig import config, devices, stages
from scbig.errors import InputError
from scbig.run import Run

EIGHT = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}


@pytest.fixture
def chosen():
    """Forgets what a test chose."""
    yield
    devices.choose()


# ---------------------------------------------------------------------------------------------------- devices


def test_on_one_device_nothing_changes():
    tree = {"a": jnp.ones((3, 2)), "key": jax.random.key(0), "host": np.arange(3)}
    assert devices.count() == 1 and devices.mesh().axis_names == ("data",)
    assert devices.spread(tree) is tree and devices.local(tree) is tree
    put = devices.replicate(tree)
    np.testing.assert_array_equal(put["host"], tree["host"])
    assert put["a"].sharding == tree["a"].sharding
    devices.check_divides(7, "batch", "pretrain.batch")


def test_devices_that_are_not_there_are_refused(chosen):
    assert devices.choose("cpu").startswith("device: cpu")
    with pytest.raises(InputError, match="device gpu was asked for but JAX found only cpu"):
        devices.choose("gpu")
    with pytest.raises(InputError, match=r"n_devices=3 asks for more devices than there are: 1 of kind cpu"):
        devices.choose("", 3)
    with pytest.raises(InputError, match="n_devices=-1"):
        devices.choose("", -1)


def test_eight_devices_divide_the_work_and_add_up_the_same(python):
    code = """
import json, jax, jax.numpy as jnp, numpy as np
from scbig import devices
from scbig.errors import InputError

def step(w, key):
    x = devices.spread(jax.random.normal(key, (64, 32)))
    return jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)

found = {}
w, key = jax.random.normal(jax.random.key(1), (32, 32)), jax.random.key(0)
for n in (1, 8):
    line = devices.choose("", n)
    args = devices.replicate((w, key))
    program = jax.jit(step).lower(*args).compile()
    loss, gradient = devices.local(program(*args))
    assert gradient.devices() == {jax.devices()[0]}
    found[n] = {
        "line": line, "flops": program.cost_analysis()["flops"], "sum": "all-reduce" in program.as_text(),
        "loss": float(loss), "gradient": np.asarray(gradient).tolist(),
    }
refused = ""
try:
    devices.check_divides(100, "batch", "pretrain.batch")
except InputError as mistake:
    refused = str(mistake)
# A step that consumes the state must not take what was kept of it.
values = np.array(w)
state = devices.replicate({"w": w})
kept = devices.local(state)
jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)(state)
np.testing.assert_array_equal(kept["w"], values)
print(json.dumps([found[1], found[8], refused]))
"""
    one, eight, refused = python(code, **EIGHT)
    assert "1 of 8" in one["line"] and "8 in all" in eight["line"]
    assert not one["sum"] and eight["sum"]
    assert eight["flops"] < one["flops"] / 4
    np.testing.assert_allclose(eight["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(eight["gradient"], one["gradient"], atol=1e-6)
    assert "batch of 100 does not divide over 8 devices; set --config.pretrain.batch=96 or 104" in refused


def same_training(one, other):
    """Both trainings to rounding, by what they left."""
    a, b = (ad.read_zarr(folder / "latents.zarr").X for folder in (one, other))
    np.testing.assert_allclose(a, b, atol=1e-3)
    first, second = ([json.loads(t) for t in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other))
    for stage in {line["stage"] for line in second}:
        x, y = ([line for line in lines if line["stage"] == stage] for lines in (first, second))
        assert [line["step"] for line in x] == [line["step"] for line in y]
        np.testing.assert_allclose([line["loss"] for line in x], [line["loss"] for line in y], rtol=1e-3)


@pytest.mark.slow
def test_both_stages_on_eight_devices_equal_one(tiny_run, copy_of_run, python):
    code = """
import json, sys, jax
from pathlib import Path
from scbig import config, stages
from scbig.training import flow, gcae

divided = []
def watching(advance):
    programs = []
    def call(*args, **settings):
        if not programs:
            programs.append(advance.lower(*args, **settings).compile())
            text = programs[0].as_text()
            divided.append("all-reduce" in text and "num_partitions=8" in text)
        return programs[0](*args)
    return call

gcae.advance, flow.advance = watching(gcae.advance), watching(flow.advance)
folder = Path(sys.argv[1])
stages.execute(folder, config.read_json(folder / "config.json"), ("pretrain", "train"), force=True)
print(json.dumps(divided))
"""
    assert python(code, copy_of_run, **EIGHT) == [True, True]
    same_training(tiny_run, copy_of_run)
    remarks = Run(copy_of_run).provenance["stages"]["train"]["remarks"]
    assert remarks["devices"] == 8 and remarks["precision"] == "float32"


# -------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def pair(shell_environment):
    """Starts ``scbig`` twice, as two processes of one training on loopback; returns both ends."""

    def run(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "scbig.cli", *map(str, arguments), "--distributed"]
        known = shell_environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        started = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=known | {"JAX_PROCESS_ID": str(i)},
            )
            for i in range(2)
        ]
        try:
            return [(*each.communicate(timeout=300), each.returncode) for each in started]
        finally:
            for each in started:
                each.kill()

    return run


@pytest.mark.slow
def test_two_processes_equal_one_and_the_first_alone_writes(tiny_run, copy_of_run, pair):
    (out, err, code), (other_out, other_err, other_code) = pair("pretrain", "--workdir", copy_of_run, "--force")
    assert (code, other_code) == (0, 0), err + other_err
    assert out.startswith("device: cpu") and "2 in all, 2 processes" in out.splitlines()[0]
    assert not [line for line in other_out.splitlines() if not line.startswith("[Gloo]")]
    # ``train`` was forgotten with ``pretrain``, but its lines of the log stay until it is run again.
    same_training(tiny_run, copy_of_run)
    assert Run(copy_of_run).provenance["stages"]["pretrain"]["remarks"]["devices"] == 2
    assert len(list((copy_of_run / "tensorboard/pretrain").iterdir())) == 2  # the first run's, and one of this one
    # What two processes left, one continues: the checkpoints are those of any training.
    provenance = json.loads((copy_of_run / "provenance.json").read_text())
    done = provenance["stages"].pop("pretrain")
    provenance["begun"] = {"pretrain": {"settings": done["settings"], "inputs": done["inputs"]}}
    (copy_of_run / "provenance.json").write_text(json.dumps(provenance))
    settings = config.read_json(copy_of_run / "config.json")
    stages.execute(copy_of_run, settings, ("pretrain",))
    same_training(tiny_run, copy_of_run)


def test_a_mistake_found_by_the_first_process_ends_both_with_a_line(pair, tmp_path):
    (_, err, code), (_, other_err, other_code) = pair(
        "run", "--workdir", tmp_path / "run", f"--config.data.path={tmp_path}/none.h5ad"
    )
    assert (code, other_code) == (2, 2)
    assert err.strip().splitlines()[-1].startswith("error: no file ")
    assert other_err.strip().splitlines()[-1].startswith("error: process 0 stopped: no file ")
    assert "Traceback" not in err + other_err


def test_processes_that_cannot_meet_are_told_why(monkeypatch):
    monkeypatch.setattr(devices, "_PATIENCE", 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="--distributed needs JAX_NUM_PROCESSES and JAX_PROCESS_ID too"):
        devices.connect()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(InputError, match=r"the first process does not answer at 127\.0\.0\.1:1"):
        devices.connect()
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(InputError, match="JAX_PROCESS_ID=first must be whole numbers"):
        devices.connect()
    assert devices.n_processes() == 1 and devices.is_first() and devices.on_first(lambda: 3) == 3
