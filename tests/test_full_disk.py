"""A disk, quota or limit that is used up ends in one line, with nothing half-written that looks whole."""

import errno
import os
import subprocess
import sys

import pytest

from scbig.errors import InputError
from scbig.files import atomic, full, no_space

LIMIT = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
"""
COMMAND = LIMIT + "from scbig import cli; sys.exit(cli.main(sys.argv[2:]))"
WRITERS = (
    LIMIT
    + """
import os
from pathlib import Path
import anndata as ad, jax.numpy as jnp, numpy as np
from scbig.errors import InputError
from scbig.files import atomic
from scbig.training.checkpoint import Checkpoints, save_params
from scbig.training.log import MetricsLog

folder = Path(sys.argv[2])
cells = ad.AnnData(np.random.default_rng(0).normal(size=(500, 60)).astype(np.float32))
state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 100)), jnp.float32)}

def zarr():
    with atomic(folder / "latents.zarr") as temporary:
        cells.write_zarr(temporary)

def h5ad():
    with atomic(folder / "predictions.h5ad") as temporary:
        cells.write_h5ad(temporary)

def log():
    writer = MetricsLog(folder, "train")
    for step in range(1000):
        writer.write(step, {"loss": 1.0})

def checkpoint():
    manager = Checkpoints(folder / "checkpoints")
    manager.save(1, state, {"step": 1})

for write in (zarr, lambda: save_params(folder / "params", state), checkpoint, log, h5ad):
    try:
        write()
    except InputError as mistake:
        print(mistake, flush=True)
os._exit(0)
"""
)


def run(code, *arguments, environment):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_full_disk_stops_prepare_with_one_line_and_it_goes_on_afterwards(
    tiny_config_file, shell, shell_environment, tmp_path
):
    folder = tmp_path / "run"
    done = run(
        COMMAND, 60_000, "prepare", "--workdir", folder, "--config", tiny_config_file, environment=shell_environment
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: the file may not be so large while writing ")
    assert "prepared.h5ad" in line and "run the same command again" in line
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "provenance.json"]
    assert shell("prepare", "--workdir", folder).returncode == 0


def test_every_writer_says_what_it_was_writing_and_leaves_nothing(shell_environment, tmp_path):
    done = run(WRITERS, 20_000, tmp_path, environment=shell_environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = ("latents.zarr", "params", "checkpoints", "metrics.jsonl", "predictions.h5ad")
    assert [name for name, line in zip(names, lines, strict=True) if f"/{name}; free some" in line] == list(names)
    assert all(line.startswith("the file may not be so large while writing ") for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "tensorboard"]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (OSError(errno.ENOSPC, "x"), "no space is left"),
        (OSError(errno.EDQUOT, "x"), "the quota is used up"),
        (RuntimeError("write failed: errno = 28, error message"), "no space is left"),
        (ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.EDQUOT)}"), "the quota is used up"),
        (ExceptionGroup("several", [KeyError("a"), OSError(errno.EFBIG, "x")]), "the file may not be so large"),
        (OSError(errno.EACCES, "x"), None),
        (KeyError("a"), None),
    ],
)
def test_full_disks_are_told_from_other_errors(problem, says, tmp_path):
    assert full(problem) == says
    wrapped = RuntimeError("while writing")
    wrapped.__cause__ = problem
    assert full(wrapped) == says
    with pytest.raises(InputError if says else RuntimeError) as caught, no_space(tmp_path / "file"):
        raise wrapped
    assert says is None or f"{says} while writing {tmp_path}/file" in str(caught.value)
    assert caught.value is wrapped or caught.value.__cause__ is wrapped


def test_a_circle_of_causes_ends():
    one, other = KeyError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    assert full(one) is None


def test_the_hooks_are_given_back(tmp_path):
    before = sys.excepthook, sys.unraisablehook
    with pytest.raises(InputError), atomic(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "x")
    assert (sys.excepthook, sys.unraisablehook) == before and list(tmp_path.iterdir()) == []
