"""In-silico knock-out: a planted map from latent differences is recovered, in either direction."""

from dataclasses import replace

import numpy as np
import pytest

from scbig.baselines import TrainingData, knockout
from scbig.baselines.latent import Latent
from scbig.errors import InputError

N = 30
GENES = tuple(f"g{i}" for i in range(N))


def world(up: bool = False, contexts: tuple[str, ...] = ("all",)) -> tuple[TrainingData, dict]:
    """Effects are a linear map of what masking the gene does to a linear latent; the last six genes are unseen."""
    rng = np.random.default_rng(0)
    weights, head = rng.normal(size=(N, 4)), rng.normal(size=(4, N))
    cells = {k: rng.gamma(2.0, size=(60, N)).astype(np.float32) for k in contexts}
    truth = {}
    for k, x in cells.items():
        masked = np.quantile(x, 0.99, axis=0) if up else np.zeros(N)
        shift = (masked - x.mean(axis=0))[:, None] * weights
        truth |= {(g, k): s @ head for g, s in zip(GENES, shift, strict=True)}
        # The gene's own response tells the direction and nothing else.
        for i, g in enumerate(GENES):
            truth[g, k][i] = 3.0 if up else -3.0
    latent = Latent("made", GENES, lambda x: x @ weights, lambda z: z, cells, {})
    keys = [(g, k) for k in contexts for g in GENES[:-6]]
    data = TrainingData(
        genes=GENES,
        conditions=tuple(g for g, _ in keys),
        contexts=tuple(k for _, k in keys),
        effects=np.stack([truth[key] for key in keys]).astype(np.float32),
        n_cells=np.full(len(keys), 20),
        latent=latent,
    )
    return data, truth


def close(model, truth, context="all", genes=GENES[-6:]) -> float:
    """Mean correlation with the truth over genes but the perturbed one."""
    r = []
    for g, x in zip(genes, model.predict(genes, [context] * len(genes)), strict=True):
        rest = np.arange(N) != GENES.index(g)
        r.append(np.corrcoef(x[rest], truth[g, context][rest])[0, 1])
    return float(np.mean(r))


@pytest.mark.parametrize("up", [False, True])
def test_a_planted_effect_is_recovered_for_unseen_genes(up):
    data, truth = world(up)
    model = knockout.fit(data)
    assert close(model, truth) > 0.97
    assert f"direction {'up' if up else 'down'}, 24 training singles" in model.notes
    mean = data.effects.mean(axis=0)
    assert np.mean([np.corrcoef(mean, truth[g, "all"])[0, 1] for g in GENES[-6:]]) < 0.9


def test_in_a_linear_latent_pairs_add_up():
    data, _ = world()
    model = knockout.fit(data, n_cells=60)
    x = model.predict(["g3+g28", "g3", "g28", "control"])
    np.testing.assert_allclose(x[0], x[1] + x[2], atol=1e-4)
    assert not x[3].any()


def test_every_context_has_its_own_controls():
    data, truth = world(contexts=("k", "l"))
    model = knockout.fit(data)
    assert close(model, truth, "k") > 0.95 and close(model, truth, "l") > 0.95
    only = np.array(data.contexts) == "k"
    part = replace(
        data,
        conditions=tuple(np.array(data.conditions)[only]),
        contexts=("k",) * only.sum(),
        effects=data.effects[only],
        n_cells=data.n_cells[only],
    )
    assert close(knockout.fit(part), truth, "l") > 0.7  # controls alone are enough to predict in a context


def test_rows_may_come_in_any_order():
    data, _ = world()
    order = np.random.default_rng(1).permutation(len(data.conditions))
    mixed = replace(data, conditions=tuple(data.conditions[i] for i in order), effects=data.effects[order])
    x, y = (knockout.fit(d).predict(GENES[-6:]) for d in (data, mixed))
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_the_ridge_chosen_grows_with_noise():
    data, _ = world()
    rng = np.random.default_rng(2)
    noise = replace(data, effects=rng.normal(size=data.effects.shape).astype(np.float32))
    chosen = [
        float(next(n for n in knockout.fit(d, "down").notes if n.startswith("ridge")).split()[1]) for d in (data, noise)
    ]
    assert chosen[0] < chosen[1]


def test_reasons_and_refusals():
    data, _ = world()
    skipped = knockout.fit(data).skipped(["g1+Z", "g1"], ["all", "moon"])
    assert "Z" in skipped[0].reason and "g1" not in skipped[0].reason and "moon" in skipped[1].reason
    assert knockout.fit(replace(data, latent=None)).skipped(["g1"])[0].reason == "needs cells"
    few = replace(
        data,
        conditions=data.conditions[:3],
        contexts=data.contexts[:3],
        effects=data.effects[:3],
        n_cells=data.n_cells[:3],
    )
    assert "3 training singles" in knockout.fit(few).skipped(["g29"])[0].reason
    with pytest.raises(InputError, match="sideways"):
        knockout.fit(data, "sideways")
    with pytest.raises(InputError, match="other genes"):
        knockout.fit(replace(data, latent=replace(data.latent, genes=GENES[::-1])))
