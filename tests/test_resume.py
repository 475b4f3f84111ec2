"""A run that is killed in every stage and continued equals one that was never killed, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

from scbig.run import STAGES
from scbig.training import read_metrics
from scbig.training.checkpoint import load_params

pytestmark = pytest.mark.slow

KILLED_IN = ("prepare", "cluster", "pretrain", "train", "sample", "evaluate")
CHECKPOINTS = {"pretrain": "gcae/checkpoints", "train": "flow/checkpoints"}


def record(folder):
    file = folder / "provenance.json"
    return json.loads(file.read_text()) if file.exists() else {"stages": {}}


def checkpoints(folder, stage):
    """The steps of whole checkpoints; one that is being written has a longer name."""
    found = (folder / CHECKPOINTS[stage]).glob("*")
    return [int(path.name) for path in found if path.name.isdigit()]


def at_work(folder, stage):
    """Whether a stage is at work and, where it trains, has a checkpoint but is not at its end."""
    if stage not in record(folder).get("begun", {}):
        return False
    return stage not in CHECKPOINTS or bool(checkpoints(folder, stage))


def start(folder, file, environment):
    command = [sys.executable, "-m", "scbig.cli", "run", "--workdir", folder, "--config", file]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture(scope="module")
def longer(tiny_config_file, tmp_path_factory):
    """The tiny configuration with training long enough to be caught at it."""
    file = tmp_path_factory.mktemp("longer") / "longer.py"
    longer = "c.pretrain.epochs, c.pretrain.patience, c.flow.steps, c.flow.patience = 40, 0, 300, 0"
    # Without the pathway loss, which takes longest to compile and draws nothing at random.
    lines = ("from scbig import config", "", "", "def get_config():", f'    c = config.load("{tiny_config_file}")')
    file.write_text(
        "\n".join([*lines, f"    {longer}", "    c.flow.lambda_path = 0.0", "    return c", ""]), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="module")
def whole(longer, shell, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = shell("run", "--workdir", folder, "--config", longer)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def killed(whole, longer, shell_environment, tmp_path_factory):
    """A run killed in every stage in turn, then let finish; what each process said, and at which step it was killed."""
    folder, said, steps = tmp_path_factory.mktemp("killed") / "run", {}, {}
    for stage in KILLED_IN:
        process = start(folder, longer, shell_environment)
        while not at_work(folder, stage):
            assert process.poll() is None, f"ended before {stage} was caught: {process.stdout.read()}"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        said[stage] = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL and stage not in record(folder)["stages"]
        if stage in CHECKPOINTS:
            steps[stage] = max(checkpoints(folder, stage))
    process = start(folder, longer, shell_environment)
    said["last"] = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said["last"]
    return folder, said, steps


def leaves(folder):
    """The bytes of every parameter, by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, reader.metadata(folder.resolve()).item_metadata.tree)
    tree = load_params(folder, like)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["gcae/params", "flow/params"])
def test_parameters_are_the_same_bits(whole, killed, name):
    one, other = leaves(whole / name), leaves(killed[0] / name)
    assert one.keys() == other.keys() and len(one) > 10
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)


def test_predictions_are_the_same_bits(whole, killed):
    one, other = (ad.read_h5ad(folder / "predictions/test.h5ad") for folder in (whole, killed[0]))
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_array_equal(one.obsm["X_latent"], other.obsm["X_latent"])
    assert one.obs.equals(other.obs)


@pytest.mark.parametrize("name", ["split.csv", "modules.csv", "audit.json", "evaluation/per_condition.csv"])
def test_tables_are_the_same_bytes(whole, killed, name):
    assert (whole / name).read_bytes() == (killed[0] / name).read_bytes()


def test_prepared_cells_and_latents_are_the_same(whole, killed):
    one, other = (ad.read_h5ad(folder / "prepared.h5ad") for folder in (whole, killed[0]))
    assert (one.X != other.X).nnz == 0 and list(one.var_names) == list(other.var_names)
    one, other = (ad.read_zarr(folder / "latents.zarr") for folder in (whole, killed[0]))
    np.testing.assert_array_equal(one.X, other.X)


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_training_continued_from_the_checkpoint_and_was_logged_once(whole, killed, stage):
    folder, said, steps = killed
    total = read_metrics(whole, stage)[-1]["step"]
    assert 0 < steps[stage] < total, "killed too late to show anything"
    after = said[KILLED_IN[KILLED_IN.index(stage) + 1]]
    assert f"{stage}: continuing at {steps[stage]} of {total}" in after.splitlines()
    assert read_metrics(folder, stage) == read_metrics(whole, stage)


def stages_that(did, said):
    """The stages of which a process said so."""
    return [name for name in STAGES if any(line.startswith(f"{name}: {did}") for line in said.splitlines())]


def test_what_was_done_was_not_done_again(killed):
    _, said, _ = killed
    for number, stage in enumerate(KILLED_IN):
        # The stage before, in which the process before was killed, is finished by this one.
        finished, before = KILLED_IN[max(number - 1, 0) : number], KILLED_IN[: max(number - 1, 0)]
        assert stages_that("done before", said[stage]) == list(before)
        assert stages_that("done in", said[stage]) == list(finished)
    assert stages_that("done before", said["last"]) == list(KILLED_IN[:-1])


def test_the_record_is_whole(killed):
    folder = killed[0]
    assert list(record(folder)["stages"]) == list(STAGES) and not record(folder)["begun"]
