"""Mistakes in what users hand in: each is named in one line, nothing is half written and nothing else is touched."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import config, predict, stages
from scbig.data.conditions import CONTROL
from scbig.errors import InputError
from scbig.files import digest
from scbig.run import STAGES, Run

RECORDS = {"provenance.json", "config.json"}


@pytest.fixture(scope="module")
def raw(tiny_screen):
    return ad.read_h5ad(tiny_screen / "screen.h5ad")


def contents(folder):
    """Digests of everything in a run but the two records, which may say that a stage was begun."""
    return {p.name: digest(p) for p in folder.iterdir() if p.name not in RECORDS} if folder.exists() else {}


def refused(folder, settings, wanted, stage="prepare", force=False):
    """Runs one stage that must refuse; returns what it says."""
    before = contents(folder)
    with pytest.raises(InputError) as told:
        stages.execute(folder, settings, (stage,), force)
    text = str(told.value)
    assert "\n" not in text and len(text) < 600
    for each in wanted:
        assert each in text
    assert contents(folder) == before
    assert not Run(folder).is_done(stage)
    assert not [name for name in contents(folder) if name.startswith(".")]
    return text


def spoil(raw, how):
    """A copy of the screen with one thing wrong, and what the message must name."""
    adata = raw.copy()
    if how == "duplicate genes":
        names = adata.var_names.to_numpy().astype(object)
        names[5] = names[4]
        adata.var_names = names
        return adata, [str(names[4]), "gene names more than once", "data.make_unique=True"]
    if how == "duplicate cells":
        names = adata.obs_names.to_numpy().astype(object)
        names[5] = names[4]
        adata.obs_names = names
        return adata, [str(names[4]), "cell names more than once", "data.make_unique=True"]
    if how in ("nan", "infinite", "negative"):
        dense = adata.X.toarray().astype(np.float32)
        dense[7, 3] = {"nan": np.nan, "infinite": np.inf, "negative": -1.0}[how]
        adata.X = sp.csr_matrix(dense)
        kind = "negative" if how == "negative" else "NaN or infinite"
        return adata, [kind, adata.var_names[3], adata.obs_names[7]]
    if how == "no controls":
        keep = (adata.obs["condition"] != CONTROL).to_numpy()
        return adata[keep].copy(), ["no control cells", "--config.data.control"]
    if how == "fractions":
        adata.X = adata.X.astype(np.float32) * 0.5
        return adata, ["does not hold counts", "--config.data.normalized=True"]
    if how == "target absent":
        gene = sorted(set("+".join(adata.obs["condition"].astype(str)).split("+")) - {CONTROL})[0]
        return adata[:, adata.var_names != gene].copy(), [
            gene,
            "perturbed genes are not among",
            "allow_missing_targets",
        ]
    raise AssertionError(how)


KINDS = (
    "duplicate genes", "duplicate cells", "nan", "infinite", "negative", "no controls", "fractions", "target absent",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique:UserWarning")
@pytest.mark.parametrize("how", KINDS)
def test_a_screen_with_one_thing_wrong_is_refused(raw, tiny_settings, tmp_path, how):
    adata, wanted = spoil(raw, how)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    settings = tiny_settings()
    settings.data.path = str(tmp_path / "bad.h5ad")
    refused(tmp_path / "run", settings, wanted)


@pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique:UserWarning")
def test_what_the_message_offers_helps_without_force(raw, tiny_settings, tmp_path):
    adata, _ = spoil(raw, "duplicate cells")
    adata.write_h5ad(tmp_path / "bad.h5ad")
    settings = tiny_settings()
    settings.data.path = str(tmp_path / "bad.h5ad")
    refused(tmp_path / "run", settings, ["make_unique"])
    settings.data.make_unique = True
    run = stages.execute(tmp_path / "run", settings, ("prepare",))
    assert run.is_done("prepare")


def test_conditions_with_few_cells_are_listed(raw, tiny_settings, tmp_path):
    counts = raw.obs["condition"].value_counts()
    few = counts[counts < 30]
    assert 0 < len(few) < len(counts) - 1
    settings = tiny_settings()
    settings.data.min_cells = 30
    text = refused(tmp_path / "run", settings, [f"{len(few)} conditions have fewer than 30 cells"])
    assert all(f"{name} ({n})" in text for name, n in few.items())


def test_a_truncated_file_is_refused(tiny_screen, tiny_settings, tmp_path):
    whole = (tiny_screen / "screen.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    settings = tiny_settings()
    settings.data.path = str(tmp_path / "cut.h5ad")
    refused(tmp_path / "run", settings, ["cut.h5ad is truncated or damaged"])


@pytest.mark.parametrize(("path", "says"), [("", "no screen given"), ("nowhere.h5ad", "no file nowhere.h5ad")])
def test_a_screen_that_is_not_there_is_refused_before_anything_is_made(tiny_settings, tmp_path, path, says):
    settings = tiny_settings()
    settings.data.path = path
    refused(tmp_path / "run", settings, [says, "--config.data.path"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["overlap", "unknown", "missing", "misspelt", "absent"])
def test_a_split_that_does_not_fit_is_refused(raw, tiny_settings, tmp_path, how):
    labels = sorted(set(raw.obs["condition"].astype(str)) - {CONTROL})
    rows = [(label, "test" if "+" in label else "train") for label in labels]
    wanted = [labels[0]]
    if how == "overlap":
        rows.append((labels[0], "test"))
    elif how == "unknown":
        rows.append(("NOSUCH", "train"))
        wanted = ["NOSUCH"]
    elif how == "missing":
        rows = rows[1:]
    elif how == "misspelt":
        rows[0] = (labels[0], "tset")
        wanted = ["tset"]
    file = tmp_path / "mine.csv"
    if how == "absent":
        wanted = ["mine.csv", "--config.split.path"]
    else:
        pd.DataFrame(rows, columns=["condition", "part"]).to_csv(file, index=False)
    settings = tiny_settings()
    settings.split.rule, settings.split.path = "file", str(file)
    refused(tmp_path / "run", settings, [*wanted, "mine.csv"])


def test_a_split_file_that_changed_is_noticed(raw, tiny_settings, tmp_path):
    labels = sorted(set(raw.obs["condition"].astype(str)) - {CONTROL})
    table = pd.DataFrame({"condition": labels, "part": ["test" if "+" in c else "train" for c in labels]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    settings = tiny_settings()
    settings.split.rule, settings.split.path = "file", str(tmp_path / "mine.csv")
    stages.execute(tmp_path / "run", settings, ("prepare",))
    before = digest(tmp_path / "run")
    table.assign(part=table["part"].where(table["condition"] != labels[-1], "train")).to_csv(tmp_path / "mine.csv")
    with pytest.raises(InputError, match="split changed since stage prepare was run"):
        stages.execute(tmp_path / "run", settings, ("prepare",))
    assert digest(tmp_path / "run") == before


@pytest.fixture(scope="module")
def prepared_run(tiny_run, tmp_path_factory):
    """A run of which only the first stage is done; copied by each test."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    shutil.copytree(tiny_run, folder)
    Run(folder).forget("cluster")
    for path in folder.iterdir():
        if path.name not in RECORDS | {"prepared.h5ad", "split.csv"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize("field", ["semantic", "ppi", "pathways", "gene_sets", "aliases"])
def test_a_missing_prior_file_is_named(prepared_run, tiny_settings, tmp_path, field):
    folder = shutil.copytree(prepared_run, tmp_path / "run")
    settings = tiny_settings()
    name = f"lost_{field}.npz"
    settings.priors[field] = (name,) if isinstance(settings.priors[field], tuple) else name
    refused(folder, settings, [name, "--config.priors"], "cluster")


def test_an_embedding_without_overlap_is_refused(prepared_run, tiny_settings, tiny_screen, tmp_path):
    folder = shutil.copytree(prepared_run, tmp_path / "run")
    priors = shutil.copytree(tiny_screen / "priors", tmp_path / "priors")
    with np.load(priors / "semantic.npz", allow_pickle=True) as file:
        vectors = file["vectors"]
    np.savez(priors / "foreign.npz", genes=np.array([f"MOUSE{i}" for i in range(len(vectors))]), vectors=vectors)
    settings = tiny_settings()
    settings.priors.dir, settings.priors.semantic = str(priors), ("foreign.npz",)
    refused(folder, settings, ["foreign", "G0001"], "cluster")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "prepare"])
def test_a_stage_before_its_time_names_the_one_to_run_and_makes_nothing(tiny_settings, tmp_path, stage):
    refused(tmp_path / "run", tiny_settings(), ["stage prepare has not been run", "`scbig prepare`"], stage)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_refused(tiny_settings, tmp_path, monkeypatch):
    import jax

    if jax.devices()[0].platform != "cpu":
        pytest.skip("there is one here")
    settings = tiny_settings()
    settings.device = "gpu"
    refused(tmp_path / "run", settings, ["device gpu was asked for", "found only cpu"])
    assert not (tmp_path / "run").exists()


def test_parameters_of_another_panel_are_refused(copy_of_run, tiny_settings, tmp_path):
    settings, folder = tiny_settings(), tmp_path / "other"
    settings.data.n_top_genes = 40
    stages.execute(folder, settings, ("prepare", "cluster"))
    # The genes of the other panel under the parameters of the first, and a record that has been made to agree.
    for name in ("prepared.h5ad", "split.csv", "modules.csv"):
        shutil.copy(folder / name, copy_of_run / name)
    with pytest.raises(InputError, match=r"changed since stage prepare wrote it"):
        predict.load(copy_of_run)
    record = json.loads((copy_of_run / "provenance.json").read_text())
    for stage in record["stages"].values():
        stage["outputs"] = {name: digest(copy_of_run / name) for name in stage["outputs"]}
    (copy_of_run / "provenance.json").write_text(json.dumps(record))
    before = digest(copy_of_run)
    with pytest.raises(InputError, match=r"gcae/params do(es)? not fit") as told:
        predict.load(copy_of_run)
    assert "\n" not in str(told.value) and digest(copy_of_run) == before


def test_parameters_put_in_from_another_run_are_noticed(copy_of_run, tiny_settings):
    settings = tiny_settings()
    damaged = next(p for p in (copy_of_run / "gcae/params").rglob("*") if p.is_file() and p.stat().st_size)
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"gcae/params changed since stage pretrain wrote it"):
        stages.execute(copy_of_run, settings, ("sample",))
    with pytest.raises(InputError, match=r"gcae/params changed since stage pretrain wrote it"):
        predict.load(copy_of_run)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("stage", "setting", "says"),
    [
        ("evaluate", "gcae.width=32", "stage pretrain was run with gcae.width=16 (now 32)"),
        ("sample", "modules.n_modules=4", "stage cluster was run with modules.n_modules=5 (now 4)"),
        ("report", "seed=5", "seed=0 (now 5)"),
        ("train", "pretrain.epochs=9", "stage pretrain was run with pretrain.epochs=3 (now 9)"),
    ],
)
def test_settings_of_stages_that_are_done_cannot_be_changed_from_a_later_one(
    copy_of_run, tiny_settings, stage, setting, says, force
):
    before = digest(copy_of_run)
    with pytest.raises(InputError) as told:
        stages.execute(copy_of_run, config.override(tiny_settings(), [setting]), (stage,), force)
    assert says in str(told.value) and digest(copy_of_run) == before


def test_force_with_a_mistake_does_not_cost_a_finished_run_its_record(copy_of_run, tiny_settings):
    before = digest(copy_of_run)
    settings = tiny_settings()
    settings.data.path = "nowhere.h5ad"
    with pytest.raises(InputError, match="nowhere.h5ad"):
        stages.execute(copy_of_run, settings, force=True)
    assert digest(copy_of_run) == before


def test_a_changed_screen_is_noticed(copy_of_run, raw, tiny_settings, tmp_path):
    other = raw.copy()
    other.X = other.X + sp.csr_matrix(([1], ([0], [0])), shape=other.shape, dtype=other.X.dtype)
    other.write_h5ad(tmp_path / "screen.h5ad")
    before = digest(copy_of_run)
    settings = tiny_settings()
    settings.data.path = str(tmp_path / "screen.h5ad")
    with pytest.raises(InputError, match=r"data.path=.*now"):
        stages.execute(copy_of_run, settings)
    assert digest(copy_of_run) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no controls", "nan"])
def test_in_the_shell_a_mistake_is_one_line_and_exit_code_2(shell, raw, tiny_config_file, tmp_path, how):
    adata, wanted = spoil(raw, how)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    done = shell(
        "run", "--workdir", tmp_path / "run", "--config", tiny_config_file, f"--config.data.path={tmp_path}/bad.h5ad"
    )
    assert done.returncode == 2 and done.stdout.startswith("device: cpu")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(each in line for each in wanted)
    assert contents(tmp_path / "run") == {}
