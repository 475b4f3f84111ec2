import gzip
import json

import pytest

from scbig import priors
from scbig.errors import InputError
from scbig.priors import AliasTable, Coverage

TABLE = AliasTable.build(
    [
        ("C19orf26", "CBARP"),
        ("OLD1", "GENE1"),
        ("OLDER1", "GENE1"),
        ("TWICE", "GENE2"),
        ("TWICE", "GENE3"),
        ("GENE4", "GENE5"),  # an approved symbol once used for another gene
        ("OLD4", "GENE4"),
    ]
)


def test_own_name_wins_over_alias():
    assert TABLE.resolve(["C19orf26"], {"C19orf26", "CBARP"}) == ["C19orf26"]


def test_old_name_in_the_data_and_old_name_in_the_prior():
    assert TABLE.resolve(["C19orf26"], {"CBARP"}) == ["CBARP"]
    assert TABLE.resolve(["CBARP"], {"C19orf26"}) == ["C19orf26"]
    assert TABLE.resolve(["OLD1"], {"OLDER1"}) == ["OLDER1"]
    assert TABLE.resolve(["NEVER"], {"CBARP"}) == [None]


def test_approved_symbol_wins_over_further_aliases():
    assert TABLE.resolve(["OLD1"], {"OLDER1", "GENE1"}) == ["GENE1"]


@pytest.mark.parametrize(("gene", "known"), [("TWICE", {"GENE2"}), ("GENE4", {"GENE5"}), ("GENE1", {"OLD1", "OLDER1"})])
def test_ambiguous_is_left_out_and_reported(gene, known):
    match = TABLE.match([gene], known)
    assert match.names == (None,)
    assert match.ambiguous == (gene,)


def test_an_ambiguous_alias_of_genes_nobody_knows_is_just_missing():
    assert TABLE.match(["TWICE"], {"X"}).ambiguous == ()


def test_two_genes_never_share_a_name():
    listed = TABLE.match(["C19orf26", "CBARP"], {"CBARP"})
    assert listed.names == (None, "CBARP")
    assert listed.ambiguous == ("C19orf26",)
    contested = TABLE.match(["OLD1", "OLDER1"], {"GENE1"})
    assert contested.names == (None, None)
    assert contested.ambiguous == ("OLD1", "OLDER1")


def test_repeated_genes_get_the_same_answer():
    assert TABLE.resolve(["OLD1", "OLD1"], {"GENE1"}) == ["GENE1", "GENE1"]


def test_symbols_without_aliases_are_protected():
    pairs = [("SKI", "HHAT")]
    assert AliasTable.build(pairs).resolve(["SKI"], {"HHAT"}) == ["HHAT"]
    assert AliasTable.build(pairs, symbols=["SKI"]).resolve(["SKI"], {"HHAT"}) == [None]


def test_mapping_agrees_with_single_lookups():
    known = {"CBARP", "OLDER1", "GENE5"}
    mapping = TABLE.mapping(known)
    assert mapping == {"C19orf26": "CBARP", "OLD1": "OLDER1", "GENE1": "OLDER1"}
    assert all(TABLE.resolve([gene], known) == [name] for gene, name in mapping.items())


def test_empty_table_matches_exact_names_only():
    assert AliasTable.empty().resolve(["A", "B"], {"A"}) == ["A", None]
    assert AliasTable.empty().mapping({"A"}) == {}


def test_read(tmp_path):
    path = tmp_path / "aliases.tsv.gz"
    with gzip.open(path, "wt") as handle:
        handle.write("alias\tsymbol\nNA\tNAGK\nC19orf26\tCBARP\n")
    table = priors.read_aliases(path)
    assert table.approved == {"NA": "NAGK", "C19orf26": "CBARP"}
    assert table.aliases == {"NAGK": ("NA",), "CBARP": ("C19orf26",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("old,new\na,b\n", "no column alias, symbol"),
        ("alias,symbol\na,b\nc,\n", "line 3"),
        ("", "empty"),
        ("alias\na\n", "single field"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, told):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        priors.read_aliases(path)
    assert str(path) in str(error.value)


def test_absent_folder_truncated_binary(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere"):
        priors.read_aliases(tmp_path / "nowhere.tsv")
    with pytest.raises(InputError, match="folder"):
        priors.read_aliases(tmp_path)
    cut = tmp_path / "cut.tsv.gz"
    whole = gzip.compress(b"alias\tsymbol\n" + b"".join(b"a%d\tb%d\n" % (i, i * 7919) for i in range(5000)))
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.tsv\.gz is truncated or corrupt"):
        priors.read_aliases(cut)
    binary = tmp_path / "binary.tsv"
    binary.write_bytes(b"alias\tsymbol\n\xff\xfe\x00\t\x81\n")
    with pytest.raises(InputError, match=r"binary\.tsv is not UTF-8"):
        priors.read_aliases(binary)


def test_coverage_counts_line_and_json():
    coverage = Coverage.of("text", {"A": True, "B": False, "C": True}, {"A": True, "Z": False}, [("C", "C1")], ["B"])
    assert (coverage.n_genes, coverage.n_found, coverage.n_targets, coverage.n_targets_found) == (3, 2, 2, 1)
    assert (coverage.missing, coverage.missing_targets) == (("B",), ("Z",))
    line = coverage.line()
    assert "\n" not in line
    for part in (
        "text: 2 of 3 genes (67%)",
        "1 of 2 perturbed",
        "1 through an alias",
        "1 ambiguous",
        "missing: Z",
    ):
        assert part in line
    assert json.loads(json.dumps(coverage.to_dict())) == coverage.to_dict()
    assert coverage.to_dict()["missing_targets"] == ["Z"]
