"""The partition and its file."""

import dataclasses

import numpy as np
import pytest

from scbig.errors import InputError
from scbig.modules import Modules


@pytest.fixture
def modules():
    return Modules(
        genes=("D", "A", "C", "B", "E"),
        module=np.array([1, 0, 1, 0, 1]),
        rank=np.array([2, 1, 0, 0, 1]),
        distance=np.array([np.nan, 0.25, 0.125, 1 / 3, 0.5]),
        history=(2.0, 1.0),
    )


def test_what_it_says(modules):
    assert modules.n_modules == 2
    np.testing.assert_array_equal(modules.sizes, [2, 3])
    assert modules.members(0) == ("B", "A")
    assert modules.members(1) == ("C", "E", "D")


def test_layout_points_at_every_gene_once_and_pads_with_a_mask(modules):
    index, mask = modules.layout()
    np.testing.assert_array_equal(mask, [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(index, [[3, 1, 0], [2, 4, 0]])
    assert index.dtype == np.int32
    assert sorted(index[mask]) == list(range(5))


def test_file_round_trip(modules, tmp_path):
    modules.save(tmp_path / "modules.csv")
    text = (tmp_path / "modules.csv").read_text().splitlines()
    assert text[0] == "gene,module,rank,distance"
    assert text[-1] == "D,1,2,"
    loaded = Modules.load(tmp_path / "modules.csv")
    assert loaded.genes == ("B", "A", "C", "E", "D")
    back = loaded.reorder(modules.genes)
    np.testing.assert_array_equal(back.module, modules.module)
    np.testing.assert_array_equal(back.rank, modules.rank)
    np.testing.assert_array_equal(back.distance, modules.distance)
    np.testing.assert_array_equal(back.layout()[0], modules.layout()[0])
    assert loaded.extra is None


def test_reorder_is_by_name(modules):
    order = ("A", "B", "C", "D", "E")
    sorted_ = modules.reorder(order)
    assert [sorted_.members(k) for k in range(2)] == [modules.members(k) for k in range(2)]
    assert sorted_.genes == order


def test_reorder_names_genes_that_differ(modules):
    with pytest.raises(InputError, match=r"no module: X, Y"):
        modules.reorder(("A", "B", "X", "C", "D", "E", "Y"))
    with pytest.raises(InputError, match=r"not in the panel: D, E|not in the panel: E, D"):
        modules.reorder(("A", "B", "C"))


def test_soft_modules_overlap(modules, tmp_path):
    soft = dataclasses.replace(modules, extra=1 - modules.module, weight=np.full(5, 0.75))
    index, mask = soft.layout(overlapping=True)
    np.testing.assert_array_equal(mask.sum(axis=1), [5, 5])
    np.testing.assert_array_equal(index[0], [3, 1, 0, 2, 4])
    np.testing.assert_array_equal(soft.layout()[0], modules.layout()[0])
    soft.save(tmp_path / "soft.csv")
    back = Modules.load(tmp_path / "soft.csv").reorder(soft.genes)
    np.testing.assert_array_equal(back.extra, soft.extra)
    np.testing.assert_array_equal(back.weight, soft.weight)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["A,0,0,0.1", "B,0,1,0.1", "A,1,0,0.1"], "more than once: A"),
        (["A,0,0,0.1", "B,2,0,0.1"], "modules without genes: 1"),
        (["A,0,0,0.1", "B,99999999999,0,0.1"], "modules without genes: 1, 2"),
        (["A,0,0,0.1", "B,0,2,0.1"], "ranks of module 0"),
        (["A,-1,0,0.1", "B,0,0,0.1"], "module -1 of gene A"),
        (["A,0,0,0.1", "B,one,0,0.1"], r"line 3: 'one' in column module"),
        (["A,0,0,0.1", "B,0,,0.1"], r"line 3: '' in column rank"),
        (["A,0,0,far"], r"line 2: 'far' in column distance"),
        (["A,0"], r"line 2: None in column rank"),
        ([",0,0,0.1"], "empty name"),
        ([], "no genes"),
    ],
)
def test_load_refuses_what_is_no_partition_and_names_the_file(tmp_path, rows, message):
    path = tmp_path / "broken.csv"
    path.write_text("\n".join(["gene,module,rank,distance", *rows]) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        Modules.load(path)
    assert "broken.csv" in str(caught.value)


def test_load_refuses_missing_columns_and_files(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("gene,cluster\nA,0\n")
    with pytest.raises(InputError, match=r"other.csv: no column module, rank, distance"):
        Modules.load(path)
    with pytest.raises(InputError, match=r"absent.csv: no such file"):
        Modules.load(tmp_path / "absent.csv")


def test_soft_membership_must_be_another_module(modules):
    with pytest.raises(InputError, match="for genes C"):
        dataclasses.replace(modules, extra=np.array([0, 1, 1, 1, 0]), weight=np.full(5, 0.5))
    with pytest.raises(InputError, match="genes B"):
        dataclasses.replace(modules, extra=1 - modules.module, weight=np.array([0.5, 0.5, 0.5, np.nan, 1.0]))


def test_a_failed_save_leaves_the_old_file(modules, tmp_path):
    path = tmp_path / "modules.csv"
    modules.save(path)
    before = path.read_bytes()
    broken = dataclasses.replace(modules, genes=("D", "A", "C", "B", "\ud800"))  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        broken.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["modules.csv"]
