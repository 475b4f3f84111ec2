import numpy as np
import pandas as pd
import pytest

from scbig.data.conditions import CONTROL, canonical, find_condition_column, genes_of, is_control, join
from scbig.errors import InputError


def names(labels, **options):
    return canonical(labels, **options)[0].astype(str).tolist()


def test_genes_and_join_are_inverse():
    assert genes_of("A+B") == ("A", "B")
    assert genes_of(CONTROL) == ()
    assert join(["B", "A", "A"]) == "A+B"
    assert join([]) == CONTROL
    for condition in ["control", "A", "A+B", "A+B+C", "(+)-JQ1", "(+)-JQ1+DrugB"]:
        assert join(genes_of(condition)) == condition
    assert genes_of("(+)-JQ1+DrugB") == ("(+)-JQ1", "DrugB")


@pytest.mark.parametrize("spelling", ["A+B", "B+A", "A|B", "A;B", "A_B", "B_A", "A,B", "A & B", "A/B"])
def test_spellings_of_a_pair(spelling):
    assert names(["A", "B", spelling, "ctrl"]) == ["A", "B", "A+B", "control"]


@pytest.mark.parametrize("spelling", ["A+ctrl", "ctrl+A", "A_ctrl", "non-targeting|A", "A;NegCtrl0"])
def test_control_inside_a_pair_falls_away(spelling):
    series, report = canonical([spelling, "control", spelling.replace("A", "B")], known={"A", "B"})
    assert series.tolist() == ["A", "control", "B"]
    assert report["separator"] in "+_|;" and report["separator_source"] == "found"


@pytest.mark.parametrize(
    "label",
    "control ctrl Ctrl NT NT1 NTg7 NTC sgNT non-targeting non_targeting_00012 nontargeting NonTargeting "
    "sgNegCtrl02 NegCtrl0 negative_control untreated vehicle DMSO unstimulated scrambled safe-targeting "
    "unperturbed".split(),
)
def test_usual_controls(label):
    assert is_control(label)
    assert names([label, "A"]) == ["control", "A"]


@pytest.mark.parametrize("gene", ["NT5E", "NTS", "NTF3", "CTRB1", "NTRK1", "PBSN", "NTN1", "MOCKX", "NTHL1", "DMSOX"])
def test_symbols_are_no_controls(gene):
    assert not is_control(gene)


def test_symbols_that_contain_a_separator_stay_whole():
    series, report = canonical(["HLA-A", "NKX2-1", "control", "HLA-A_NKX2-1", "STAT1_ctrl"], known={"STAT1"})
    assert series.tolist() == ["HLA-A", "NKX2-1", "control", "HLA-A+NKX2-1", "STAT1"]
    assert report["separator"] == "_"
    # A read-through gene is one gene although both its parts are.
    assert names(["RBM14", "RBM4", "RBM14-RBM4", "control"])[2] == "RBM14-RBM4"
    assert names(["A", "B", "A_B", "control"], known={"A", "B", "A_B"})[2] == "A_B"
    series, report = canonical(["HLA-A", "control", "AC_001"])
    assert series.tolist() == ["HLA-A", "control", "AC_001"] and report["separator_source"] == "none"


def test_genes_of_the_panel_tell_parts():
    assert names(["A_B", "control"]) == ["A_B", "control"]
    assert names(["A_B", "control"], known={"A", "B"}) == ["A+B", "control"]


def test_half_known_pair_is_refused_by_name():
    with pytest.raises(InputError, match=r"'_'.*A_ZZZ.*separator=_"):
        canonical(["A", "B", "A_B", "A_ZZZ", "control"])
    for label in ["DMSO_24h", "ZZZ_ctrl", "mock-treated"]:
        with pytest.raises(InputError, match=rf"only some of their parts are known: {label}.*data.control="):
            canonical(["A", label])
    assert names(["A", "DMSO_24h"], control="DMSO*") == ["A", "control"]
    assert names(["A", "B", "A_B", "A_ZZZ", "control"], separator="_")[3] == "A+ZZZ"


def test_given_separator_splits_every_label():
    series, report = canonical(["X-Y", "control", "Z"], separator="-")
    assert series.tolist() == ["X+Y", "control", "Z"]
    assert report["separator_source"] == "given" and report["renamed"] == 1


def test_given_controls():
    assert names(["AAVS1", "A", "AAVS1+A"], control=["AAVS1"]) == ["control", "A", "A"]
    assert names(["or1", "or2", "A"], control="or*") == ["control", "control", "A"]
    # What is given replaces the usual spellings of whole labels.
    assert names(["DMSO", "untreated"], control=["untreated"]) == ["DMSO", "control"]
    with pytest.raises(InputError, match=r"'control' is not among the controls given \(NT1\)"):
        canonical(["control", "NT1", "A"], control=["NT1"])


def test_refusals_name_the_label():
    with pytest.raises(InputError, match="2 of 3 rows have no condition"):
        canonical(pd.Series(["A", None, "nan"]))
    with pytest.raises(InputError, match="'A\\+' has an empty part"):
        canonical(["A+", "B"])
    with pytest.raises(InputError, match="more than one separator"):
        canonical(["A+B", "A|C"])
    with pytest.raises(InputError, match=r"contain '\+'.*A\+B"):
        canonical(["A+B", "A_C"], separator="_")


def test_gene_called_na_is_kept():
    assert names(["NA", "None", "control"]) == ["NA", "None", "control"]


def test_idempotent_and_keeps_index():
    labels = pd.Series(["B+A", "ctrl", "A+ctrl"], index=["x", "y", "z"], dtype="category")
    once, _ = canonical(labels)
    again, report = canonical(once)
    assert list(once.index) == ["x", "y", "z"] and once.equals(again) and report["renamed"] == 0


def test_many_cells_quickly():
    rng = np.random.default_rng(0)
    labels = np.array([f"G{i}_G{i + 1}" for i in range(200)] + [f"G{i}" for i in range(201)] + ["ctrl"])
    series, report = canonical(labels[rng.integers(len(labels), size=300_000)])
    assert report["n_conditions"] == 401 and len(series) == 300_000


def test_condition_column():
    obs = pd.DataFrame({"batch": ["1"], "Perturbation": ["A"], "guide": ["g1"]})
    assert find_condition_column(obs) == "Perturbation"
    assert find_condition_column(obs.assign(condition=["A"])) == "Perturbation"
    with pytest.raises(InputError, match=r"Perturbation, condition.*--config.data.condition="):
        find_condition_column(obs.assign(condition=["B"]))
    with pytest.raises(InputError, match=r"columns are batch, guide"):
        find_condition_column(obs[["batch", "guide"]])


@pytest.mark.realdata
def test_real_spellings(shared):
    import anndata

    effects = anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad")
    series, report = canonical(effects.obs["condition"])
    assert report["n_conditions"] == 234 and report["separator"] == "+"
    assert sum(len(genes_of(c)) == 2 for c in series) == 130
    for joint in "_-":
        spelled = effects.obs["condition"].str.replace("+", joint)
        series, _ = canonical(spelled, known=set(effects.var_names), separator=joint)
        assert sum(len(genes_of(c)) == 2 for c in series) == 130
