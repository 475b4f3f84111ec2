"""Every notebook runs, says what it promises, and is stored as it ran."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat, nbclient and ipykernel")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
    "01_quick_start",
    "02_your_own_data",
    "03_reading_a_report",
    "04_modules_and_mechanisms",
    "05_combinations_and_next_screen",
    "06_your_own_embeddings",
    "07_judging_predictions",
]
MOST = 300_000  # bytes of a file

# What must hold of the variables that a notebook leaves behind; each runs as a further cell of it.
CHECKS = {
    "01_quick_start": """
assert list(cells.var_names) == list(screen.var_names) and cells.n_obs == 300 * len(test)
assert set(cells.obs["condition"]) == set(test) == set(rests_on.index) and pair in test
assert set(cells.obs["source_cell"]) <= set(screen.obs_names[condition == "control"])
assert not set(test) & set(split.conditions("train"))
assert np.corrcoef(effects.loc[pair][others], true[others])[0, 1] > 0.6
assert {"scBIG", "additive", "control"} <= {row[0] for row in rows} and 0 < ceiling.mean() <= 1
""",
    "02_your_own_data": """
meant = simulated.adata.obs["condition"].astype(str).to_numpy()
assert (screen.obs["condition"].astype(str).to_numpy() == meant).all()
assert (screen.layers["counts"] != counts).nnz == 0
assert list(screen.obs["batch"].astype(str)) == list(lanes)
assert cells.n_obs == 600 and list(cells.var_names) == list(prepared.var_names)
assert unmade not in set(meant) and unmade in set(cells.obs["condition"])
assert {"scBIG", "additive"} <= {row[0] for row in table}
assert not FOLDER.exists()
""",
    "03_reading_a_report": """
value = tricks.value
assert value("other half", "pearson_delta") > value("constant", "pearson_delta") > value("copy of controls", "pearson_delta")
assert value("constant", "pearson_delta_ref_perturbed") < 0.3 < value("other half", "pearson_delta_ref_perturbed")
assert value("loud", "l2") > value("copy of controls", "l2") and value("loud", "pds_l2") > 0.8
assert value("no noise", "variance_ratio") < 0.01 and value("spread × 2", "variance_ratio") > 3
assert min(blocks, key=lambda name: value(name, "e_distance")) == "other half"
assert set(order) == set(scores.methods) and 0 < ceiling("pearson_delta") <= 1
assert (ranks["variance_ratio"].drop("other half") >= 2).any()
""",
    "04_modules_and_mechanisms": """
assert agree > 0.5 and set(best.index) <= set(modules.labels(view))
assert largest in view.conditions("test")
assert set(told.tables["modules_by_condition"]["condition"]) <= set(view.conditions("test"))
assert len(by_mean) == view.modules.n_modules * len(chosen)
assert together.tables["coactivation"]["q"].between(0, 1).all()
assert len(looks.figures) >= 2
""",
    "05_combinations_and_next_screen": """
done = set(view.obs["condition"].astype(str))
for plan in (by_interaction, by_uncertainty, by_target):
    assert 0 < len(plan) <= 6 and not done & set(plan["condition"]) and all("+" in name for name in plan["condition"])
assert set(inside) == set(test) and all(0.5 < share <= 1 for share in inside.values())
assert (errors["sum of the singles"] > 0).all() and errors["scBIG"].mean() < 1.2 * errors["sum of the singles"].mean()
assert set(scores["condition"]) >= set(test) and list(told.index) == test
assert (told["measured"] >= seen["relative"] - 1e-6).all(), "noise adds to a departure"
""",
    "06_your_own_embeddings": """
assert found.coverage.missing_targets == (lost,) and len(found.coverage.renamed) == 3
assert list(skills) == list(sources) and skills["semantic"].mean() > 0
assert abs(skills.filter(like="random").to_numpy()).mean() < 0.4
assert set(account.index) == set(unseen) == set(cells.obs["condition"]) and set(account["kind"]) == {"unseen"}
assert not FOLDER.exists()
""",
    "07_judging_predictions": """
assert len(told) == 6 and all(text.startswith("predictions 'ours'") for text in told.values()), told
assert set(some.excluded.query("method == 'ours'")["condition"]) >= {test[0], test[1]}
assert abs(scores.value("ours", "pearson_delta") - again.value("ours", "pearson_delta")) < 1e-6
assert {"ours", "additive", "control", "mean", "shuffled"} <= set(scores.methods) and gap.n == len(test)
assert "report.html" in written and "effects_only" in done.stdout
""",
}


def each(test):
    return pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)(test)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(output):
    """All text of an output, whatever its form; pictures left out."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "\n".join(
        [str(value) for kind, value in data.items() if kind.startswith("text/")] + output.get("traceback", [])
    )


@pytest.fixture(scope="module")
def tool():
    """``scripts/notebooks.py``."""
    spec = importlib.util.spec_from_file_location("scbig_notebooks", ROOT / "scripts" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tool, tiny_run, tiny_screen, tmp_path_factory):
    """Notebooks and a small run, laid out as in the tree."""
    scratch = tmp_path_factory.mktemp("notebooks")
    folder = tool.layout(scratch, tiny_run)
    shutil.copytree(tiny_screen, scratch / "runs" / "demo" / "simulated")
    return folder


def test_all_notebooks_are_there():
    assert [file.stem for file in FILES] == NAMES == sorted(CHECKS)


@each
@pytest.mark.slow
def test_runs_on_another_run(file, tool, tree, shell_environment):
    """On a run of other sizes and gene names than the one that outputs are stored of."""
    quiet = shell_environment | {"PYTHONWARNINGS": "ignore", "IPYTHONDIR": str(tree.parent / "ipython")}
    done = tool.tidy(
        tool.execute(tree / file.name, timeout=600, more=[CHECKS[file.stem] + "\nprint('checked')"], environment=quiet)
    )
    assert text_of(done.cells[-1].outputs[-1]).strip() == "checked"


@each
def test_outputs_are_of_these_sources(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert outputs(notebook), "no outputs are stored"
    assert not [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"]


@each
def test_stored_text_names_no_machine(file):
    notebook = nbformat.read(file, as_version=4)
    text = "\n".join(map(text_of, outputs(notebook)))
    assert not re.findall(r"(?:/home/|/tmp|/work/|/root|/Users/|/var/folders|[A-Z]:\\)\S*", text)
    assert not re.search(r"\d+ s left|it/s\]|0x[0-9a-f]{6}", text), "progress or addresses"
    assert file.stat().st_size < MOST


@each
def test_ends_with_where_next(file):
    notebook = nbformat.read(file, as_version=4)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert re.match(rf"# {int(file.stem[:2])}\. \S", first.source)
    assert "## Where next" in last.source and "](../docs/" in last.source


@each
def test_links_lead_somewhere(file):
    notebook = nbformat.read(file, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        there = (file.parent / path).resolve()
        assert there.is_file(), target
        titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in names, target


def test_sources_pass_the_linter():
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *words, "notebooks"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_failing_cell_fails(tool, tmp_path, shell_environment):
    """The execution that the tests rest on notices errors."""
    from nbclient.exceptions import CellExecutionError

    broken = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), broken)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tool.execute(broken, environment=shell_environment)


def test_warnings_are_not_stored(tool):
    """Nor is anything that differs from machine to machine."""
    cell = nbformat.v4.new_code_cell("x")
    cell.metadata["execution"] = {"iopub.status.busy": "2020"}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert not tool.tidy(notebook).cells[0].metadata
    cell.outputs = [nbformat.v4.new_output("stream", name="stderr", text="UserWarning: mine")]
    with pytest.raises(ValueError, match="UserWarning: mine"):
        tool.tidy(notebook)
