import numpy as np
import pandas as pd
import pytest

from scbig.errors import InputError
from scbig.training.holdout import hold_out
from scbig.training.vocabulary import Group, Vocabulary, group_cells


@pytest.fixture
def vocabulary():
    rng = np.random.default_rng(0)
    text = (
        ["A", "B", "C", "ZERO"],
        np.vstack([rng.normal(size=(3, 4)), np.zeros((1, 4))]).astype(np.float32),
    )
    network = (["B", "NEW"], rng.normal(size=(2, 3)).astype(np.float32))
    return Vocabulary.build(
        {"text": text, "network": network}, ["A", "X"], True, {"network": {"OLD": "NEW"}}, ["k562", "rpe1"]
    )


def test_groups_are_conditions_in_contexts_at_doses():
    obs = pd.DataFrame(
        {
            "condition": ["drug", "control", "drug", "drug", "B"],
            "context": ["x", "x", "y", "x", "x"],
            "dose": [1.0, np.nan, 1.0, 10.0, np.nan],
        }
    )
    number, groups = group_cells(obs)
    assert groups == [
        Group("B", "x", 0.0),
        Group("drug", "x", 1.0),
        Group("drug", "x", 10.0),
        Group("drug", "y", 1.0),
    ]
    assert [groups[n] if n >= 0 else None for n in number] == [
        groups[1],
        None,
        groups[3],
        groups[2],
        groups[0],
    ]


def test_each_source_answers_for_what_it_knows(vocabulary):
    given = vocabulary.conditions(
        [Group("A+B", "rpe1"), Group("OLD", "k562"), Group("control", "k562"), Group("X", "k562", 3.0)]
    )
    assert given.present.tolist() == [[True, True], [True, False], [False, False], [True, False]]
    assert given.known["text"].tolist() == [[True, True], [False] * 2, [False] * 2, [False] * 2]
    assert given.known["network"].tolist() == [[False, True], [True, False], [False] * 2, [False] * 2]
    assert given.known["identity"].tolist() == [[True, False], [False] * 2, [False] * 2, [True, False]]
    assert given.context.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(given.dose, [[0, 0], [0, 0], [0, 0], [np.log(4), 0]], atol=1e-6)
    lengths = np.linalg.norm(given.sources["text"][0], axis=-1)
    np.testing.assert_allclose(lengths, 2.0, rtol=1e-2)


def test_what_no_source_knows_is_named_with_the_sources(vocabulary):
    with pytest.raises(InputError, match=r"no embedding for ZERO, Q in any source \(identity, network, text\)"):
        vocabulary.conditions([Group("A+ZERO", "k562"), Group("Q", "k562")])
    with pytest.raises(InputError, match=r"context hela was not trained on; there are k562, rpe1"):
        vocabulary.conditions([Group("A", "hela")])
    with pytest.raises(InputError, match="identity"):
        Vocabulary.build({}, ["A"], False, {}, ["k562"])


def test_it_is_read_back_as_it_was_written(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.npz")
    again = Vocabulary.load(tmp_path / "v.npz")
    assert (
        again.genes == vocabulary.genes
        and {k: v for k, v in again.alias.items() if v} == vocabulary.alias
        and again.contexts == vocabulary.contexts
    )
    for name, values in vocabulary.vectors.items():
        np.testing.assert_array_equal(again.vectors[name], values)
    assert again.coverage(["A", "OLD", "Q"])["network"] == ["A", "Q"]


def test_cells_are_kept_back_from_every_group_that_can_spare_them():
    obs = pd.DataFrame(
        {
            "condition": ["control"] * 100 + ["A"] * 40 + ["B"] * 12 + ["C"] * 5 + ["T"] * 30,
            "context": "all",
            "batch": "all",
        }
    )
    trainable = (obs["condition"] != "T").to_numpy()
    learn, kept = hold_out(obs, trainable, 0.1, 0)
    assert not (learn & kept).any() and ((learn | kept) == trainable).all()
    assert obs[kept]["condition"].value_counts().to_dict() == {"control": 10, "A": 4, "B": 2}
    again = hold_out(obs, trainable, 0.1, 0)[1]
    assert (again == kept).all() and (hold_out(obs, trainable, 0.1, 1)[1] != kept).any()
