"""A model as one file: what comes back, without the run, and what is refused."""

import json
import shutil
import zipfile

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scbig import data, predict
from scbig.data.conditions import CONTROL
from scbig.errors import InputError
from scbig.predict import bundle, cells
from scbig.stages import export
from scbig.training.checkpoint import export_params, load_params


def exported(run, out, controls=2000, force=False):
    return export.export(export.Task(str(run), str(out), controls, force))


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The tiny run as a bundle with all its controls."""
    return exported(tiny_run, tmp_path_factory.mktemp("bundle") / "tiny.scbig")


@pytest.fixture(scope="module")
def without_cells(tiny_run, tmp_path_factory):
    return exported(tiny_run, tmp_path_factory.mktemp("bundle") / "bare.scbig", 0)


@pytest.fixture(scope="module")
def of_run(tiny_run):
    return predict.load(tiny_run)


@pytest.fixture(scope="module")
def labels(of_run):
    """A measured condition and one of the test part."""
    seen = set(of_run.anchor.data.conditions)
    genes = sorted(name for name in seen if "+" not in name)
    return [genes[0], next(f"{a}+{b}" for a in genes for b in genes if a < b and f"{a}+{b}" not in seen)]


def changed(path, out, change):
    """A copy of the bundle with members changed: ``change(name, raw)`` gives the new bytes, or None to leave it out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            raw = change(name, old.read(name))
            if raw is not None:
                new.writestr(name, raw)
    return out


def same(a, b):
    np.testing.assert_array_equal(a.X, b.X)
    np.testing.assert_array_equal(a.obsm["X_latent"], b.obsm["X_latent"])
    assert a.obs.astype(str).equals(b.obs.astype(str)) and a.var.equals(b.var)
    assert set(a.varm) == set(b.varm)
    for name in a.varm:
        np.testing.assert_array_equal(a.varm[name], b.varm[name])
    assert set(a.uns["scbig"]) == set(b.uns["scbig"])


def test_cells_of_the_bundle_are_those_of_the_run(whole, of_run, labels):
    of_bundle = predict.load(whole)
    same(of_run.sample(labels, 30), of_bundle.sample(labels, 30))
    assert of_bundle.name == of_run.name and of_bundle.about == of_run.about
    assert of_bundle.auto.latent_scale == of_run.auto.latent_scale


_IN_ANOTHER_PROCESS = """
import json, sys
from scbig import predict
cells = predict.load("moved.scbig").sample(json.loads(sys.argv[1]), 30)
cells.write_h5ad("cells.h5ad")
print(json.dumps(len(cells)))
"""


def test_another_process_elsewhere_needs_no_run(tiny_run, whole, of_run, labels, tmp_path, python, monkeypatch):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    exported(copy, elsewhere / "moved.scbig")
    shutil.rmtree(copy)
    # The same run gives the same file, whatever its place.
    assert (elsewhere / "moved.scbig").read_bytes() == whole.read_bytes()
    monkeypatch.chdir(elsewhere)
    assert python(_IN_ANOTHER_PROCESS, json.dumps(labels)) == 60
    same(of_run.sample(labels, 30), ad.read_h5ad(elsewhere / "cells.h5ad"))


def test_it_is_a_member_of_an_ensemble(whole, tiny_run, labels):
    both = predict.load([whole, tiny_run])
    assert isinstance(both, predict.Ensemble)
    assert "seed_spread" in both.sample(labels[:1], 10).varm


def test_of_many_controls_each_context_keeps_its_share(tiny_run, of_run, tmp_path):
    kept = predict.load(exported(tiny_run, tmp_path / "few.scbig", 20))
    assert len(kept.controls) == 20 and set(kept.controls.index) < set(of_run.controls.index)
    place = of_run.controls.index.get_indexer(kept.controls.index)
    np.testing.assert_array_equal(kept.z0, of_run.z0[place])
    assert (kept.x0 != of_run.x0[place]).nnz == 0
    places, context = np.arange(100), np.array(["a"] * 90 + ["b"] * 10)
    chosen = cells.thinned(places, context, 30, 0)
    assert len(chosen) == 25 and set(range(90, 100)) <= set(chosen.tolist())


def test_the_manifest_tells_the_split_and_no_path(whole, tiny_run):
    told = bundle.read_manifest(whole)
    split = data.Split.load(tiny_run / "split.csv")
    assert told["split"]["sha256"] == split.sha256 and told["split"]["test"] == split.conditions("test")
    assert told["run"]["flow/anchor.npz"] and told["controls"]["cells"] == sum(told["controls"]["per_context"].values())
    with zipfile.ZipFile(whole) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if name.endswith((".json", ".md"))]
    folder = str(json.loads((tiny_run / "config.json").read_text())["priors"]["dir"])
    assert folder and all(folder not in text and str(tiny_run) not in text for text in texts)


def test_no_perturbed_cell_travels(whole, tiny_run, tmp_path):
    with zipfile.ZipFile(whole) as archive:
        archive.extract("cells.h5ad", tmp_path)
    inside = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (inside.obs["condition"].astype(str) == CONTROL).all()
    assert list(inside.var_names) == list(ad.read_h5ad(tiny_run / "prepared.h5ad", backed="r").var_names)


# Damage


def test_a_file_that_is_absent_or_no_bundle(tmp_path):
    with pytest.raises(InputError, match=r"no file .*absent\.scbig"):
        predict.load(tmp_path / "absent.scbig")
    text = tmp_path / "text.scbig"
    text.write_text("nothing")
    with pytest.raises(InputError, match=r"text\.scbig is truncated, damaged or no bundle"):
        predict.load(text)
    with zipfile.ZipFile(tmp_path / "other.scbig", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match=r"other\.scbig is no bundle of scBIG \(it holds no bundle\.json\)"):
        predict.load(tmp_path / "other.scbig")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_truncated_bundle(whole, tmp_path, share):
    raw = whole.read_bytes()
    cut = tmp_path / "cut.scbig"
    cut.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(InputError, match=r"cut\.scbig is truncated, damaged or no bundle"):
        predict.load(cut)


def test_one_flipped_bit(whole, tmp_path):
    raw = bytearray(whole.read_bytes())
    raw[raw.index(b"flow/params.npz") + 3000] ^= 1
    bad = tmp_path / "bad.scbig"
    bad.write_bytes(raw)
    with pytest.raises(InputError, match=r"bad\.scbig is truncated, damaged or no bundle \(.*flow/params\.npz"):
        predict.load(bad)


@pytest.mark.parametrize("name", bundle.MEMBERS)
def test_an_edited_and_a_missing_member_are_named(whole, tmp_path, name):
    edited = changed(whole, tmp_path / "edited.scbig", lambda n, raw: raw + b" " if n == name else raw)
    with pytest.raises(InputError, match=rf"edited\.scbig: {name} was changed or damaged after the export"):
        predict.load(edited)
    short = changed(whole, tmp_path / "short.scbig", lambda n, raw: None if n == name else raw)
    with pytest.raises(InputError, match=rf"short\.scbig lacks {name}; fetch it again"):
        predict.load(short)


def told_otherwise(whole, out, **more):
    def change(name, raw):
        return json.dumps(json.loads(raw) | more).encode() if name == bundle.MANIFEST else raw

    return changed(whole, out, change)


def test_another_format_is_refused_by_number(whole, tmp_path):
    newer = told_otherwise(whole, tmp_path / "newer.scbig", format=bundle.FORMAT + 1)
    with pytest.raises(InputError, match=r"of format 2, and this version reads 1: install a newer scBIG"):
        predict.load(newer)
    older = told_otherwise(whole, tmp_path / "older.scbig", format=0)
    with pytest.raises(InputError, match=r"of format 0, and this version reads 1: export the run anew"):
        predict.load(older)
    for wrong in ("one", None):
        odd = told_otherwise(whole, tmp_path / "odd.scbig", format=wrong)
        with pytest.raises(InputError, match=r"bundle\.json is damaged"):
            predict.load(odd)


def test_what_no_bundle_holds_is_not_unpacked(whole, tmp_path):
    more = tmp_path / "more.scbig"
    shutil.copyfile(whole, more)
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("../escaped", "x")
    with pytest.raises(InputError, match=r"holds what no bundle does \(\.\./escaped\)"):
        predict.load(more)


# Parameters by name


def test_parameters_come_back_and_others_are_named(tmp_path):
    tree = {"a": {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}, "c": np.float32(2)}
    export_params(tmp_path / "p", tree)
    back = load_params(tmp_path / "p", tree)
    np.testing.assert_array_equal(back["a"]["w"], tree["a"]["w"])
    assert float(back["c"]) == 2.0
    with pytest.raises(InputError, match=r"a/w is float32\[2, 3\] and should be float32\[3, 3\]"):
        load_params(tmp_path / "p", {**tree, "a": {"w": np.ones((3, 3), np.float32), "b": tree["a"]["b"]}})
    with pytest.raises(InputError, match=r"d is absent"):
        load_params(tmp_path / "p", {**tree, "d": np.zeros(1)})
    with pytest.raises(InputError, match=r"c has no place"):
        load_params(tmp_path / "p", {"a": tree["a"]})
    with pytest.raises(InputError, match=r"b is float32\[3\] and should be float64\[3\]"):
        load_params(tmp_path / "p", {**tree, "a": {"w": tree["a"]["w"], "b": np.zeros(3)}})
    (tmp_path / "p.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"the parameters in .*p\.npz are damaged"):
        load_params(tmp_path / "p", tree)


# Control cells of one's own


@pytest.fixture(scope="module")
def screen(tiny_run):
    """The prepared screen, with the counts that it was made from."""
    prepared = ad.read_h5ad(tiny_run / "prepared.h5ad")
    return prepared[(prepared.obs["condition"] == CONTROL).to_numpy()].copy()


def as_counts(screen):
    """The same cells as ``data.read`` leaves counts."""
    marks = {"schema": 1, "kind": "screen", "normalization": "counts", "size_factor": "total"}
    depth = screen.obs["size_factor"].to_numpy() / screen.uns["scbig"]["target_sum"]
    counts = sp.csr_matrix(np.rint(np.expm1(screen.X.toarray()) * depth[:, None]).astype(np.float32))
    out = ad.AnnData(counts, obs=screen.obs.copy(), var=screen.var[[]].copy(), uns={"scbig": marks})
    out.layers["counts"] = counts
    return out


def test_without_cells_it_needs_ones_own(without_cells, screen, of_run, labels):
    with pytest.raises(InputError, match=r"bare\.scbig was exported without control cells; give cells of your own"):
        predict.load(without_cells)
    given = predict.load(without_cells, controls=screen)
    assert list(given.controls.index) == list(screen.obs_names)
    drawn = given.sample(labels, 20)
    np.testing.assert_allclose(drawn.varm["effect"], of_run.sample(labels, 20).varm["effect"])
    assert set(drawn.obs["source_cell"]) <= set(screen.obs_names)


def test_genes_are_matched_by_name_and_others_left_out(without_cells, screen, labels):
    turned = screen[:, ::-1].copy()
    more = ad.concat([turned, ad.AnnData(sp.csr_matrix(np.ones((turned.n_obs, 1), np.float32)), obs=turned.obs[[]],
                                         var={"name": ["NEW"]})], axis=1, merge="same")  # fmt: skip
    more.var_names = [*turned.var_names, "NEW"]
    more.obs, more.uns = turned.obs, turned.uns
    a, b = (predict.load(without_cells, controls=each).sample(labels, 15) for each in (screen, more))
    np.testing.assert_array_equal(a.X, b.X)


def test_counts_are_scaled_as_those_of_the_run(without_cells, screen):
    """The target is that of the run, not the median of the cells given, which here is another."""
    few = screen[screen.obs["size_factor"] > screen.obs["size_factor"].median()].copy()
    of_log, of_counts = (predict.load(without_cells, controls=each) for each in (few, as_counts(few)))
    np.testing.assert_allclose(of_counts.x0.toarray(), of_log.x0.toarray(), atol=1e-4)
    np.testing.assert_allclose(of_counts.z0, of_log.z0, atol=1e-3)


def test_a_run_takes_ones_own_controls_too(tiny_run, screen, labels):
    few = screen[:40].copy()
    assert set(predict.load(tiny_run, controls=few).sample(labels, 15).obs["source_cell"]) <= set(few.obs_names)


def marked(screen, **marks):
    out = screen.copy()
    out.uns["scbig"] = dict(out.uns["scbig"]) | marks
    return out


def of_context(screen, name):
    out = screen.copy()
    out.obs["context"] = name
    return out


def perturbed(screen):
    out = screen.copy()
    out.obs["condition"] = "G0001"
    return out


def unmarked(screen):
    out = screen.copy()
    del out.uns["scbig"]
    return out


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s[:, 2:].copy(), "lack 2 of 60 genes of the run: "),
        (unmarked, r"do not say what their numbers are \(uns\['scbig'\]\)"),
        (lambda s: marked(s, target_sum=1e4), "scaled to 10000 counts per cell, those of the run to"),
        (lambda s: marked(s, normalization="given"), "trained on counts that it scaled itself, and the controls given"),
        (lambda s: of_context(s, "elsewhere"), "context elsewhere, which was not trained on; there are "),
        (perturbed, "hold none whose obs"),
    ],
)
def test_controls_that_do_not_fit_are_refused(without_cells, screen, spoil, says):
    with pytest.raises(InputError, match=says):
        predict.load(without_cells, controls=spoil(screen))
