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


def test_the_bank_holds_the_trained_perturbations_and_travels(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.npz")
    again = Vocabulary.load(tmp_path / "v.npz")
    bank, kept = vocabulary.bank(), again.bank()
    assert again.trained == ("A", "X") and sorted(bank.sources) == ["network", "text"]
    for source in bank.sources:
        np.testing.assert_array_equal(bank.sources[source], kept.sources[source])
        np.testing.assert_array_equal(bank.known[source], kept.known[source])
    assert bank.known["text"].tolist() == [True, False] and not np.asarray(bank.known["network"]).any()
    np.testing.assert_array_equal(bank.sources["text"][0], vocabulary.vectors["text"][0])
    own = again.conditions([Group("A+B", "rpe1"), Group("X", "k562")]).own
    assert own.tolist() == [[0, -1], [1, -1]]


def test_an_alias_of_a_trained_perturbation_is_the_same_row():
    vectors = np.eye(2, dtype=np.float32)
    one = Vocabulary.build({"network": (["NEW", "B"], vectors)}, ["NEW"], False, {"network": {"OLD": "NEW"}}, ["k"])
    assert one.conditions([Group("OLD", "k"), Group("NEW", "k"), Group("B", "k")]).own.tolist() == [[0], [0], [-1]]


def test_files_without_a_bank_are_read_but_have_no_kernel(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file.files if name != "trained"})
    old = Vocabulary.load(tmp_path / "old.npz")
    assert old.trained == () and old.conditions([Group("A", "k562")]).own.tolist() == [[-1]]
    with pytest.raises(InputError, match="condition.kernel=False"):
        old.bank()


def test_a_network_with_a_kernel_is_stored_without_its_bank_and_read_with_it(vocabulary, tmp_path):
    import jax
    from flax import nnx

    from scbig import config
    from scbig.run import Run
    from scbig.training import assemble
    from scbig.training.checkpoint import save_params

    settings = config.default()
    settings.condition.width, settings.velocity.width, settings.gcae.latent = 8, 8, 4
    settings.condition.kernel, settings.condition.fusion = True, "attention"
    network = assemble.new_flow(settings, vocabulary)
    network.encoder.neighbours.values[...] += 1.0
    _, params, buffers = nnx.split(network, nnx.Param, ...)
    assert {leaf.shape for leaf in jax.tree.leaves(buffers)} == {(2, 4), (2, 3), (2, 2)}
    run = Run(tmp_path)
    save_params(run.path("flow/params"), params)
    vocabulary.save(run.path("flow/conditions.npz"))
    again = assemble.load_flow(run, settings, Vocabulary.load(run.path("flow/conditions.npz")))
    given = vocabulary.conditions([Group("A+B", "rpe1"), Group("X", "k562")])
    jax.tree.map(np.testing.assert_array_equal, network.encode(given), again.encode(given))
