"""Fixtures shared by all tests."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the time of a tiny run is compilation, and programs that run for milliseconds need no optimising. For the
# processes that tests start as well.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

# Programs compiled by one test are there for the next, and for the processes that tests start: a tiny run compiles for
# most of a minute and computes for seconds. Fresh in every session.
_COMPILED = tempfile.mkdtemp(prefix="scbig-compiled-")
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real screens and priors, or a skip that says what is missing."""
    folder = Path(os.environ.get("SCBIG_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real screens are not here: {folder}/data is absent (set SCBIG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_screen(tmp_path_factory) -> Path:
    """A simulated screen of 800 cells × 60 genes with its priors, as ``scbig simulate`` writes it; not to be changed."""
    from scbig.data.simulate import SimConfig, save, simulate

    size = SimConfig(
        n_cells=800, n_genes=60, n_modules=5, n_singles=8, n_doubles=8, embedding_dim=16, ppi_density=0.1,
        control_share=0.2, truth_cells=64,
    )  # fmt: skip
    return save(simulate(size), tmp_path_factory.mktemp("screen") / "simulated")


@pytest.fixture(scope="session")
def tiny_settings(tiny_screen) -> Callable:
    """Makes the configuration of a run on the tiny screen that trains in seconds; a fresh one on every call."""
    from scbig import config

    def make():
        c = config.demo(tiny_screen.parent)
        c.name = "tiny"
        c.split.n_test, c.split.n_val = 3, 2
        c.priors.min_pathway = 3
        c.modules.n_modules = 5
        c.gcae.width, c.gcae.depth, c.gcae.heads, c.gcae.latent, c.gcae.inducing = 16, 1, 2, 8, 4
        c.pretrain.epochs, c.pretrain.batch, c.pretrain.checkpoint_every = 3, 64, 1
        c.condition.width, c.velocity.width, c.velocity.depth = 16, 32, 1
        c.flow.steps, c.flow.chunk, c.flow.evaluate_every, c.flow.checkpoint_every = 100, 25, 50, 1
        c.flow.conditions, c.flow.cells, c.flow.align_conditions, c.flow.align_cells = 8, 8, 2, 8
        c.flow.watch_conditions, c.flow.watch_cells, c.flow.solver_steps = 6, 16, 4
        c.sample.n_cells = c.evaluation.n_cells = 40
        return c

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_settings, tmp_path_factory) -> Path:
    """A finished run on the tiny screen; not to be changed (see ``copy_of_run``)."""
    from scbig import stages

    folder = tmp_path_factory.mktemp("run") / "tiny"
    stages.execute(folder, tiny_settings())
    return folder


@pytest.fixture
def copy_of_run(tiny_run, tmp_path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_config_file(tiny_settings, tmp_path_factory) -> Path:
    """The tiny configuration as a file for ``--config``."""
    from scbig import config

    file = tmp_path_factory.mktemp("config") / "tiny.py"
    kept = file.with_suffix(".json")
    kept.write_text(config.as_json(tiny_settings()), encoding="utf-8")
    lines = ("from pathlib import Path", "", "from scbig import config", "", "", "def get_config():")
    file.write_text("\n".join([*lines, f'    return config.read_json(Path("{kept}"))', ""]), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def shell_environment() -> dict[str, str]:
    """The environment of the processes that tests start."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "80",
        "JAX_COMPILATION_CACHE_DIR": _COMPILED,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }


@pytest.fixture(scope="session")
def shell(shell_environment) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``scbig`` with the given arguments in a process of its own, as a user's shell does."""

    def run(*arguments, cwd=None):
        command = [sys.executable, "-m", "scbig.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=shell_environment, timeout=300, check=False
        )

    return run


_DASK = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="session")
def dask_process(shell_environment, tmp_path_factory) -> Iterator[Callable]:
    """Starts a Dask scheduler with a worker in other processes; gives the process and the address. Ended in the end."""
    started = []
    script = tmp_path_factory.mktemp("dask") / "cluster.py"
    script.write_text(_DASK, encoding="utf-8")

    def start():
        environment = shell_environment | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([sys.executable, str(script)], text=True, env=environment, **pipes))
        return started[-1], started[-1].stdout.readline().strip()

    yield start
    for process in started:
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def dask_scheduler(dask_process) -> str:
    """The address of a Dask scheduler in another process, with one worker."""
    return dask_process()[1]


@pytest.fixture
def python(shell_environment):
    """Runs Python code in a process of its own with more in its environment; returns its last line, read as JSON."""

    def run(code, *arguments, **more):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=shell_environment | more, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
