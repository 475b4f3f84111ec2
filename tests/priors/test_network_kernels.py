"""Profiles of a gene list: exact inner products, against dense linear algebra on small networks."""

import numpy as np
import pytest

from scbig import priors
from scbig.errors import InputError
from scbig.priors import PPI

GENES = ("A", "B", "C", "D", "E", "F", "LONE")
EDGES = [("A", "B", 900), ("A", "C", 900), ("B", "C", 1000), ("D", "E", 800), ("E", "F", 900), ("C", "D", 700)]


@pytest.fixture
def ppi():
    at = {g: i for i, g in enumerate(GENES)}
    rows, cols = (np.array([at[e[k]] for e in EDGES], np.int32) for k in (0, 1))
    return PPI("net", GENES, rows, cols, np.array([e[2] for e in EDGES], np.float32))


def dense(ppi):
    a = np.zeros((7, 7))
    a[ppi.rows, ppi.cols] = a[ppi.cols, ppi.rows] = ppi.scores / 1000
    return a


def cosine(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_partners_are_weighed_by_score_and_rarity(ppi):
    found = priors.neighbour_profiles(ppi, ["F", "A", "LONE", "C", "NEVER"])
    assert found.genes == ("F", "A", "C")
    a = dense(ppi)
    rarity = np.log(7 / np.maximum((a > 0).sum(axis=0), 1))
    expected = cosine(((a + np.eye(7)) * rarity)[[5, 0, 2]])
    np.testing.assert_allclose(found.vectors @ found.vectors.T, expected, atol=1e-5)


def test_walks_are_those_of_the_resolvent(ppi):
    found = priors.walk_profiles(ppi, list(GENES), restart=0.4)
    assert found.genes == GENES[:-1]
    a = dense(ppi)
    step = a / np.maximum(a.sum(axis=1, keepdims=True), 1e-12)
    walk = 0.4 * np.linalg.inv(np.eye(7) - 0.6 * step)[:6]
    np.testing.assert_allclose(walk.sum(axis=1), 1)
    expected = cosine(np.log(np.maximum(7 * walk, 1)))
    np.testing.assert_allclose(found.vectors @ found.vectors.T, expected, atol=2e-3)


def test_memberships_weigh_rare_sets_more():
    sets = {"all": "ABCDEF", "pair": "AB", "other": "CDE", "alone": "A"}
    found = priors.membership_profiles(sets, ["A", "B", "C", "F", "G"])
    assert found.genes == ("A", "B", "C")  # F is in the set of all only, which tells nothing
    np.testing.assert_allclose(found.vectors @ found.vectors.T, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-5)
    more = priors.membership_profiles(sets | {"ac": "AC"}, ["A", "B", "C"])
    pair, ac = np.log(3), np.log(3)
    assert (more.vectors @ more.vectors.T)[0, 1] == pytest.approx(pair / np.hypot(pair, ac), abs=1e-5)


def test_other_names_are_followed_and_repeats_agree(ppi, tmp_path):
    (tmp_path / "a.tsv").write_text("alias\tsymbol\nOLD\tA\n")
    aliases = priors.read_aliases(tmp_path / "a.tsv")
    one, two = (priors.walk_profiles(ppi, ["OLD", "B"], aliases) for _ in range(2))
    assert one.genes == ("OLD", "B")
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_mistakes_are_named(ppi):
    with pytest.raises(InputError, match="none of the 1 genes"):
        priors.neighbour_profiles(ppi, ["NEVER"])
    with pytest.raises(InputError, match="between 0 and 1"):
        priors.walk_profiles(ppi, ["A"], restart=1)
    with pytest.raises(InputError, match="none of the 1 genes"):
        priors.membership_profiles({"s": "AB"}, ["C"])
