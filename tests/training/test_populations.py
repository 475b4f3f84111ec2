import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from scbig import rng
from scbig.errors import InputError
from scbig.training.populations import build, displacements, draw, watch
from scbig.training.vocabulary import Vocabulary, group_cells


@pytest.fixture
def screen():
    """Groups of very unequal size in two contexts and two batches; the latent of a cell is its own number."""
    random = np.random.default_rng(0)
    condition = np.repeat(["control", "A", "B", "A+B", "T"], [60, 7, 50, 3, 20])
    obs = pd.DataFrame(
        {
            "condition": condition,
            "context": random.choice(["x", "y"], 140),
            "batch": random.choice(["1", "2"], 140),
        }
    )
    train = ((obs["condition"] != "T") & (random.random(140) < 0.7)).to_numpy()
    z = np.repeat(np.arange(140, dtype=np.float32)[:, None], 2, 1)
    number = np.full(140, -1)
    mask = (obs["condition"] != "T").to_numpy()
    number[mask], groups = group_cells(obs[mask])
    vocabulary = Vocabulary.build({}, ["A", "B"], True, {}, ["x", "y"])
    keep = [g for g, _ in enumerate(groups) if (train & (number == g)).any()]
    number = np.array([keep.index(n) if n in keep else -1 for n in number])
    groups = [groups[g] for g in keep]
    return z, obs, train, number, groups, vocabulary.conditions(groups)


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("coupling", ["independent", "precomputed"])
def test_draws_stay_in_their_group_and_its_control_pool(screen, by_batch, coupling):
    z, obs, train, number, groups, conditions = screen
    populations, report = build(
        z, obs, train, number, groups, conditions, by_batch=by_batch, coupling=coupling, epsilon=0.05, seed=0
    )
    assert (coupling == "precomputed") == ("coupling_perplexity" in report)
    seen = set()
    for step in range(40):
        chosen, source, target = draw(rng.key(0, "batch", step), populations, 3, 16, coupling)
        chosen, source, target = map(np.asarray, (chosen, source, target))
        assert len(set(chosen.tolist())) == 3
        assert train[source].all() and train[target].all()
        assert (number[target] == chosen[:, None]).all()
        assert (obs["condition"].to_numpy()[source] == "control").all()
        assert (obs["context"].to_numpy()[source] == obs["context"].to_numpy()[target]).all()
        if by_batch:
            assert (obs["batch"].to_numpy()[source] == obs["batch"].to_numpy()[target]).all()
        seen |= set(target.ravel().tolist())
    assert seen == set(np.flatnonzero(train & (number >= 0)).tolist())


@pytest.mark.parametrize("by_batch", [False, True])
def test_displacements_are_what_draws_show_on_average(screen, by_batch):
    z, obs, train, number, groups, conditions = screen
    populations, _ = build(
        z, obs, train, number, groups, conditions, by_batch=by_batch, coupling="independent", epsilon=0.05, seed=0
    )
    found = displacements(populations)
    control = train & (obs["condition"] == "control").to_numpy()
    on = ["context", "batch"] if by_batch else ["context"]
    for g in range(len(groups)):
        cells = np.flatnonzero(train & (number == g))
        own = [z[control & (obs[on] == obs.loc[cell, on]).all(axis=1).to_numpy()].mean(axis=0) for cell in cells]
        np.testing.assert_allclose(found[g], z[cells].mean(axis=0) - np.mean(own, axis=0), rtol=1e-5)


def test_more_conditions_than_groups_are_drawn_again(screen):
    z, obs, train, number, groups, conditions = screen
    populations, _ = build(
        z,
        obs,
        train,
        number,
        groups,
        conditions,
        by_batch=False,
        coupling="independent",
        epsilon=0.05,
        seed=0,
    )
    chosen, _, _ = draw(rng.key(0, "batch"), populations, 30, 2, "independent")
    assert chosen.shape == (30,) and int(chosen.max()) < len(groups)


def test_groups_without_controls_or_cells_are_named(screen):
    z, obs, train, number, groups, conditions = screen
    no_y = train & ~((obs["condition"] == "control") & (obs["context"] == "y")).to_numpy()
    options = {"by_batch": False, "coupling": "independent", "epsilon": 0.05, "seed": 0}
    with pytest.raises(InputError, match="no training controls in y"):
        build(z, obs, no_y, number, groups, conditions, **options)
    with pytest.raises(InputError, match="no training cells for A"):
        build(z, obs, train & (obs["condition"] != "A").to_numpy(), number, groups, conditions, **options)


def test_watched_cells_are_held_out_padded_and_weighted(screen):
    z, obs, train, number, groups, conditions = screen
    held = ~train & (obs["condition"] != "T").to_numpy()
    watched = watch(z, z, obs, held, number, groups, conditions, len(groups), n_cells=8, n_groups=3, seed=0)
    cells = np.asarray(watched.real[..., 0]).astype(int)
    weight = np.asarray(watched.real_weight).astype(bool)
    assert held[cells[weight]].all() and (number[cells[weight]] >= 0).all()
    for row, kept in zip(cells, weight, strict=True):
        assert len(set(number[row[kept]])) == 1 and len(set(row[kept])) == kept.sum() >= 2
    controls = np.asarray(watched.control[..., 0]).astype(int)
    assert held[controls].all() and (obs["condition"].to_numpy()[controls] == "control").all()
    np.testing.assert_array_equal(watched.control, watched.z0)
    with pytest.raises(InputError, match="holdout_fraction"):
        watch(z, z, obs, np.zeros(140, bool), number, groups, conditions, len(groups), 8, 3, 0)


def test_validation_groups_weigh_as_much_as_trained_ones(screen):
    z, obs, train, number, groups, conditions = screen
    held = ~train & (obs["condition"] != "T").to_numpy()
    watched = watch(z, z, obs, held, number, groups, conditions, len(groups) - 1, n_cells=8, n_groups=9, seed=0)
    share = np.asarray(watched.share)
    assert share.sum() == pytest.approx(1.0)
    cells = np.asarray(watched.real[:, 0, 0]).astype(int)
    assert share[number[cells] == len(groups) - 1].sum() == pytest.approx(0.5)


def test_draws_depend_on_the_key_alone(screen):
    z, obs, train, number, groups, conditions = screen
    populations, _ = build(
        z,
        obs,
        train,
        number,
        groups,
        conditions,
        by_batch=False,
        coupling="independent",
        epsilon=0.05,
        seed=0,
    )
    one, two = (draw(rng.key(3, "batch", jnp.asarray(7)), populations, 3, 4, "independent") for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_plans_made_at_once_are_those_made_one_by_one(screen, monkeypatch):
    z, obs, train, number, groups, conditions = screen
    settings = {"by_batch": True, "coupling": "precomputed", "epsilon": 0.05, "seed": 0}
    several, told = build(z, obs, train, number, groups, conditions, **settings)
    monkeypatch.setattr("scbig.training.populations.os.cpu_count", lambda: 1)
    alone, again = build(z, obs, train, number, groups, conditions, **settings)
    np.testing.assert_array_equal(several.pairs, alone.pairs)
    assert told == again


def test_only_watched_cells_are_projected(screen):
    z, obs, train, number, groups, conditions = screen
    held = ~train & (obs["condition"] != "T").to_numpy()
    asked = []

    def project(rows):
        asked.append(rows)
        return z[rows]

    given = (obs, held, number, groups, conditions, len(groups), 8, 3, 0)
    one, other = watch(z, z, *given), watch(z, project, *given)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert held[np.concatenate(asked)].all() and sum(map(len, asked)) == 2 * np.prod(one.real_weight.shape)
