import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from scbig.data import split_published, split_rules
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.data.splits import RULES, Split, check, from_file, load, make
from scbig.errors import InputError

GENES = [f"G{i:02d}" for i in range(24)]


def screen(seed=0, n_pairs=60, singles=GENES):
    """Singles, drawn pairs and control; three contexts with most conditions in each; some 4 cells per "
    "pair."""
    rng = np.random.default_rng(seed)
    pairs = {join(rng.choice(GENES, 2, replace=False)) for _ in range(n_pairs)}
    conditions = [CONTROL, *singles, *sorted(pairs)]
    frame = pd.DataFrame(
        [(c, context) for context in ("X", "Y", "Z") for c in conditions for _ in range(8)],
        columns=["condition", "context"],
    )
    frame = frame[rng.random(len(frame)) < 0.9]
    frame.index = [f"cell{i}" for i in range(len(frame))]
    return frame


def settings(**given):
    return ConfigDict({"held_out_context": "Y", "name": "", "path": "", "n_test": None} | given)


MADE = [rule for rule in RULES if rule != "file"]


def example(rule, seed):
    obs = screen(seed)
    if rule == "simulation_single":
        obs = obs[~obs["condition"].str.contains("+", regex=False)]
    return obs


@pytest.mark.parametrize("rule", MADE)
def test_properties_over_seeds(rule, tmp_path):
    hashes = set()
    for seed in range(8):
        obs = example(rule, 3)
        split = make(rule, obs, settings(seed=seed))
        hashes.add(split.sha256)
        # Covered: every cell has a part, and every condition with a part is named once per key.
        parts = split.assign(obs)
        assert parts.shape == (len(obs),) and set(parts) <= {"train", "val", "test"}
        assert not split.table.duplicated(split.key).any()
        # The table and the cells say the same thing.
        cond = obs["condition"].to_numpy()
        for part in ("train", "val", "test"):
            assert sorted(set(cond[parts == part]) - {CONTROL}) == split.conditions(part)
        assert split.conditions("test")
        assert not any(CONTROL in split.conditions(part) for part in ("train", "val", "test"))
        # The order of cells does not matter.
        mixed = obs.sample(frac=1.0, random_state=seed)
        assert make(rule, mixed, settings(seed=seed)).sha256 == split.sha256
        assert (split.assign(mixed) == pd.Series(parts, obs.index)[mixed.index].to_numpy()).all()
        if rule != "cells":
            assert (parts[cond == CONTROL] == "train").all()
        # There and back.
        split.save(tmp_path / f"{seed}.csv")
        back = load(tmp_path / f"{seed}.csv")
        assert (back.name, back.rule, back.seed, back.sha256) == (split.name, rule, seed, split.sha256)
        pd.testing.assert_frame_equal(back.table, split.table)
    assert len(hashes) == 8, "seeds must matter"


@pytest.mark.parametrize("seed", range(10))
def test_additive_singles_are_trained(seed):
    obs = screen(seed, singles=GENES[:18])
    split = make("additive", obs, settings(seed=seed, n_test=6, n_val=5))
    train = set(split.conditions("train"))
    held = split.conditions("test") + split.conditions("val")
    assert len(split.conditions("test")) == 6 and len(split.conditions("val")) == 5
    assert all(len(genes_of(c)) == 2 and set(genes_of(c)) <= train for c in held)


@pytest.mark.parametrize("seed", range(20))
def test_holdout_never_leaks(seed):
    split = make("holdout", screen(seed), settings(seed=seed))
    trained = {g for c in split.conditions("train") for g in genes_of(c)}
    validated = {g for c in split.conditions("val") for g in genes_of(c)}
    for part, known in (("test", trained | validated), ("val", trained)):
        for condition in split.conditions(part):
            assert not set(genes_of(condition)) <= known
    singles = split.conditions("test", "single")
    assert len(singles) == round(0.2 * len(GENES))
    for condition in singles:
        assert condition not in trained | validated
    for stratum, count in (("double_0_seen", 0), ("double_1_seen", 1)):
        for part in ("val", "test"):
            assert all(len(set(genes_of(c)) & trained) == count for c in split.conditions(part, stratum))
    assert set(split.table["stratum"]) <= {"", "single", "double_0_seen", "double_1_seen"}


@pytest.mark.parametrize("seed", range(20))
def test_simulation_strata_are_true(seed):
    split = make("simulation", screen(seed), settings(seed=seed))
    trained = {g for c in split.conditions("train") for g in genes_of(c)}
    strata = {"unseen_single": 0, "combo_seen0": 0, "combo_seen1": 1, "combo_seen2": 2}
    for part in ("val", "test"):
        for stratum, count in strata.items():
            assert all(len(set(genes_of(c)) & trained) == count for c in split.conditions(part, stratum))
    assert set(split.table["stratum"]) <= {"", *strata}
    assert len(split.conditions("test", "unseen_single")) == 6  # a quarter of 24 genes
    assert split.conditions("test", "combo_seen2")


def test_simulation_single_has_the_sizes_of_the_paper():
    table = split_published.simulation_single([f"P{i}" for i in range(1536)])
    assert table["part"].value_counts().to_dict() == {"train": 1037, "test": 384, "val": 115}
    with pytest.raises(InputError, match=r"A\+B.*rule=simulation"):
        split_published.simulation_single(["A", "B", "A+B", "control"])


def test_context_trains_elsewhere():
    obs = screen()
    split = make("context", obs, settings(held_out_context="Y", test_fraction=0.4, val_fraction=0.2))
    parts, held = split.assign(obs), obs["context"].to_numpy() == "Y"
    assert (parts[~held] == "train").all() and (parts[held] == "test").any() and (parts[held] == "val").any()
    for part in ("test", "val"):
        assert set(split.conditions(part)) <= set(obs["condition"][~held])
    assert not set(split.conditions("test")) & set(split.conditions("val"))
    assert set(split.table.loc[split.table["part"] != "train", "stratum"]) == {"Y"}
    with pytest.raises(InputError, match=r"X, Y, Z 'Q' is not one.*held_out_context"):
        make("context", obs, settings(held_out_context="Q"))
    with pytest.raises(InputError, match="none is named"):
        make("context", obs, settings(held_out_context=""))


def test_context_ignores_what_no_other_context_has():
    obs = pd.DataFrame({"condition": ["control", "A", "B", "control", "A"], "context": list("YYYXX")})
    split = make("context", obs, settings(test_fraction=1.0))
    assert split.conditions("test") == ["A"] and "B" in split.conditions("train")


def test_cells_shares():
    obs = screen()
    split = make("cells", obs, settings(test_fraction=0.25, val_fraction=0.125))
    table = pd.DataFrame({"part": split.assign(obs), "condition": obs["condition"], "context": obs["context"]})
    counts = table.groupby(["condition", "context"])["part"].value_counts().unstack(fill_value=0)
    size = counts.sum(axis=1)
    assert (counts["test"] == np.maximum(1, np.rint(size * 0.25))).all()
    assert (counts["val"] == np.maximum(1, np.rint(size * 0.125))).all()
    assert (counts.loc[CONTROL, "test"] > 0).all()
    with pytest.raises(InputError, match=r"too few cells.*A in X"):
        split_rules.cells(pd.DataFrame({"condition": list("ABB"), "context": "X"}, index=list("abc")))


def test_scdfm_repeats_the_legacy_draw():
    labels = ["ctrl", *GENES, *[f"{a}+{b}" for a, b in zip(GENES[1:], GENES[:-1], strict=True)]]
    table = split_published.scdfm(labels, fold=1)
    pairs = np.unique([label for label in labels if "+" in label]).astype(object)
    np.random.RandomState(43).shuffle(pairs)
    expected = {join(label.split("+")) for label in pairs[: int(0.3 * len(pairs))]}
    assert set(table.loc[table["part"] == "test", "condition"]) == expected
    assert "val" not in set(table["part"])


@pytest.mark.parametrize(
    ("rule", "conditions", "message"),
    [
        ("additive", ["A", "B", "A+B", "control"], "additive: 1 test and 1 val .* 1 of 3 conditions"),
        ("additive", ["A", "B"], "0 of 2 conditions"),
        ("holdout", ["A", "B"], "holdout: 1 test and 1 val genes are wanted of 2"),
        ("simulation", ["A"], "simulation: 1 genes are to be held out of 1"),
        ("simulation_single", ["A", "control"], "wanted of 1"),
        ("random", ["A", "B"], "random: 1 test and 1 val conditions are wanted of 2"),
        ("scdfm", ["A", "B", "A+B"], "1 combinations are too few"),
        ("cells", ["A"], "needs the cells' table"),
        ("nonsense", ["A"], "'nonsense' is not a split rule: use one of additive"),
        ("file", ["A"], "--config.split.path=FILE"),
    ],
)
def test_too_little_is_one_clear_line(rule, conditions, message):
    with pytest.raises(InputError, match=message):
        make(rule, conditions, settings())


def test_settings_out_of_range():
    with pytest.raises(InputError, match=r"test_fraction=1.5 is not between"):
        make("random", GENES, settings(test_fraction=1.5))
    with pytest.raises(InputError, match=r"n_val=-1 is negative"):
        make("random", GENES, settings(n_val=-1))


def row(*pairs, stratum=""):
    return pd.DataFrame([(c, p, stratum) for c, p in pairs], columns=["condition", "part", "stratum"])


def test_tables_are_proven():
    with pytest.raises(InputError, match="more than once: A:"):
        Split("s", "file", 0, row(("A", "train"), ("A", "test")))
    with pytest.raises(InputError, match="not 'valid'"):
        Split("s", "file", 0, row(("A", "train"), ("B", "valid")))
    with pytest.raises(InputError, match=r"canonical spelling.*B\+A"):
        Split("s", "file", 0, row(("A", "train"), ("B+A", "test")))
    with pytest.raises(InputError, match="'control' is held out"):
        Split("s", "file", 0, row(("A", "train"), ("control", "test")))
    with pytest.raises(InputError, match="columns are condition"):
        Split("s", "file", 0, row(("A", "train")).drop(columns="stratum"))
    assert Split("s", "file", 0, row(("B", "test"), ("control", "train"), ("A", "train"))).table.shape == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("rule", "table", "named"),
    [
        ("additive", row(("A", "train"), ("B", "val"), ("A+B", "test")), r"A\+B, B|B, A\+B"),
        ("holdout", row(("A", "test"), ("B", "train"), ("A+B", "train"), stratum="single"), "A are held out"),
        ("holdout", row(("A", "test"), ("B", "train"), stratum="double_1_seen"), "A are held out"),
        (
            "holdout",
            pd.DataFrame(
                [("A", "test", "single"), ("A+C", "val", "double_1_seen"), ("C", "train", "")],
                columns=["condition", "part", "stratum"],
            ),
            "A are held out",
        ),
        ("simulation", row(("A", "test"), ("A+B", "train"), stratum="seen_single"), "A are held out"),
        ("simulation", row(("A+B", "test"), ("A", "train"), stratum="combo_seen2"), r"A\+B are held out"),
        ("random", row(("A", "test")), "leaves no condition to train on"),
    ],
)
def test_leaks_are_found(rule, table, named):
    with pytest.raises(InputError, match=named):
        check(Split("s", rule, 0, table))


def test_leaks_of_cells_and_contexts_are_found():
    frame = pd.DataFrame({"cell": list("ab"), "condition": list("AB"), "part": ["train", "test"], "stratum": ""})
    with pytest.raises(InputError, match=r"B are held out"):
        check(Split("s", "cells", 0, frame))
    frame = frame.rename(columns={"cell": "context"})
    with pytest.raises(InputError, match=r"B are held out.*another context"):
        check(Split("s", "context", 0, frame))


def test_assign_refuses_what_it_does_not_know():
    split = Split("mine", "file", 0, row(("A", "train"), ("B", "test")))
    with pytest.raises(InputError, match="'mine' says nothing about C, D"):
        split.assign(pd.DataFrame({"condition": ["A", "C", "control", "D", "C"]}))
    with pytest.raises(InputError, match=r"needs obs\['condition'\]"):
        split.assign(pd.DataFrame({"perturbation": ["A"]}))
    obs = screen()
    split = make("cells", obs, settings())
    with pytest.raises(InputError, match="the cells other0"):
        split.assign(obs.rename(index={"cell0": "other0"}))
    with pytest.raises(InputError, match="other conditions of the cells cell0"):
        split.assign(obs.assign(condition=["G05", *obs["condition"][1:]]))


def test_edited_and_broken_files(tmp_path):
    path = tmp_path / "split.csv"
    make("random", GENES, settings(seed=1)).save(path)
    text = path.read_text()
    assert text.startswith("# scbig split v1\n# name: random-1\n# rule: random\n# seed: 1\n# sha256: ")
    path.write_text(text.replace(",test,", ",train,", 1))
    with pytest.raises(InputError, match=r"split.csv was edited.*--config.split.rule=file --config.split.path="):
        load(path)
    assert from_file(path, GENES).rule == "file"  # what the message proposes works
    line = next(r for r in text.splitlines() if ",test," in r)
    path.write_text(text + line.replace(",test,", ",train,") + "\n")
    with pytest.raises(InputError, match=f"more than once: {line.split(',')[0]}"):
        load(path)
    path.write_text(text[: len(text) - 15])
    with pytest.raises(InputError, match=r"split.csv"):
        load(path)
    path.write_text("\n".join(text.splitlines()[5:]))
    with pytest.raises(InputError, match="does not begin with '# scbig split v1'"):
        load(path)
    path.write_text(text.replace("# seed: 1\n", ""))
    with pytest.raises(InputError, match="lacks its name, rule, seed or sha256"):
        load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"split.csv cannot be read"):
        load(path)
    with pytest.raises(InputError, match=r"no split file .*nothing.csv"):
        load(tmp_path / "nothing.csv")


def test_a_leak_in_a_saved_split_is_found_on_load(tmp_path):
    leaky = Split("s", "additive", 0, row(("A", "train"), ("A+B", "test")))
    leaky.save(tmp_path / "s.csv")
    with pytest.raises(InputError, match=r"leaks: A\+B"):
        load(tmp_path / "s.csv")


def test_own_file(tmp_path):
    path = tmp_path / "mine.csv"
    conditions = ["A", "B", "NA", "A+B", "control"]
    path.write_text("A+ctrl,train\nctrl+B,test\nNA,val\nB+A,test\ncontrol,train\n")
    split = from_file(path, conditions)
    assert split.name == "mine" and split.conditions("test") == ["A+B", "B"] and split.conditions("val") == ["NA"]
    assert split.conditions("test", "combo_seen1") == ["A+B"]
    path.write_text("condition\tpart\tstratum\nA\ttrain\t\nB\ttest\teasy\nNA\tval\t\nA+B\ttest\thard\n")
    assert from_file(path, conditions).conditions("test", "hard") == ["A+B"]
    for text, message in [
        ("A,train\nB,test\n", r"says nothing about these conditions of the data: A\+B, NA"),
        ("A,train\nB,test\nNA,val\nA+B,test\nZZ,test\n", "does not have: ZZ"),
        ("A,train\nB,test\nNA,val\nA+B,test\nB+A,val\n", r"more than once: A\+B"),
        ("A,train\nB,testing\nNA,val\nA+B,test\n", "'testing'"),
        ("A,train\nB\n", "row 2"),
        ("A,train\nB,test\nNA,val\nA+B,test\ncontrol,test\n", "'control' is held out"),
        ("", "is empty"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            from_file(path, conditions)


def test_own_file_by_context_and_by_cell(tmp_path):
    obs = screen()
    for rule in ("context", "cells"):
        made = make(rule, obs, settings())
        made.save(tmp_path / f"{rule}.csv")
        own = make("file", obs, settings(path=str(tmp_path / f"{rule}.csv")))
        assert own.key == made.key and (own.assign(obs) == made.assign(obs)).all()


def test_saved_split_by_path(tmp_path):
    path = str(tmp_path / "s.csv")
    made = make("random", GENES, settings(seed=4))
    made.save(path)
    assert make("random", GENES, settings(path=path)).sha256 == made.sha256
    assert make("", GENES, settings(path=path)).seed == 4
    with pytest.raises(InputError, match="made by the rule 'random', not 'holdout'"):
        make("holdout", GENES, settings(path=path))
    with pytest.raises(InputError, match="says nothing about NEW"):
        make("random", [*GENES, "NEW"], settings(path=path))


def test_hash_is_of_the_rows():
    table = row(("A", "train"), ("B", "test"))
    one = Split("a", "file", 0, table)
    assert one.sha256 == Split("b", "random", 5, table[::-1]).sha256
    assert one.sha256 != Split("a", "file", 0, row(("A", "test"), ("B", "train"))).sha256


def test_a_hundred_thousand_cells_are_assigned_by_condition():
    rng = np.random.default_rng(0)
    names = np.array([f"P{i}" for i in range(1000)] + [CONTROL])
    obs = pd.DataFrame({"condition": names[rng.integers(1001, size=100_000)]}, index=[f"c{i}" for i in range(100_000)])
    obs["condition"] = obs["condition"].astype("category")
    obs["context"] = "all"
    perturbed = (obs["condition"] != CONTROL).to_numpy()
    for rule, parts in (("random", 1), ("cells", 2)):
        part = pd.Series(make(rule, obs, settings()).assign(obs), obs.index)[perturbed]
        assert {"train", "test"} <= set(part)
        assert part.groupby(obs["condition"][perturbed].astype(str)).nunique().max() == parts


@pytest.mark.realdata
def test_real_splits(shared):
    import anndata

    effects = anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad", backed="r").obs["condition"]
    split = make("additive", effects, settings(n_test=32, n_val=32))
    pairs = [c for c in effects if len(genes_of(c)) == 2]
    singles = set(effects) - set(pairs)
    assert sum(set(genes_of(c)) <= singles for c in pairs) == 126
    assert sum("+" in c for c in split.conditions("train")) == 130 - 64
    assert len(make("additive", effects, settings()).conditions("test")) == 32
    make("holdout", effects, settings(n_test=21))
    kang = anndata.read_h5ad(shared / "data" / "kang2018_pbmc.h5ad", backed="r").obs.rename(
        columns={"cell_type": "context"}
    )
    split = make("context", kang, settings(held_out_context="CD4T"))
    parts = split.assign(kang)
    held = (kang["condition"] == "stimulated") & (kang["context"] == "CD4T")
    assert ((parts == "test") == held.to_numpy()).all() and (parts[~held] == "train").all()
