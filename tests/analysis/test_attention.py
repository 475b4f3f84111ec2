import dataclasses

import jax
import numpy as np
import pytest
import scipy.sparse as sp

from scbig.analysis import Ask, attention, load
from scbig.analysis.attention import received
from scbig.errors import InputError
from scbig.nn.gcae import GCAEConfig, ModuleLayout
from scbig.training import autoencoder

GENES = 20


def made(encoder="induced", depth=2):
    """An untrained autoencoder of four modules, the third of which has no genes."""
    index = np.arange(GENES).reshape(4, 5)[:3].tolist()
    index = np.array([index[0], index[1], [0] * 5, index[2]])
    mask = np.array([[True] * 5, [True] * 5, [False] * 5, [True] * 5])
    layout = ModuleLayout(index.astype(np.int32), mask)
    config = GCAEConfig(
        width=8, depth=depth, heads=2, inducing=3, latent=4, dropout=0.0, encoder=encoder, decoder="mlp"
    )
    auto = autoencoder.new(config, layout, 0)
    # Attention of fresh networks is all but even; larger weights make it choose.
    return dataclasses.replace(auto, params=jax.tree.map(lambda w: 3.0 * w, auto.params))


def cells(n=7):
    return np.random.default_rng(1).normal(size=(n, 15)).astype(np.float32)


@pytest.mark.parametrize("how", attention.HOW)
@pytest.mark.parametrize("encoder", ["induced", "transformer"])
def test_attention_sums_to_one_and_an_empty_module_gets_none(encoder, how):
    found = received(made(encoder), cells(), how)
    assert found.shape == (7, 4)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found[:, 2], 0.0, atol=1e-7)
    assert found[:, [0, 1, 3]].std(axis=0).min() > 1e-4


def maps_of(auto, x):
    _, maps = auto.network().encode(x - auto.gene_mean[None])
    return [{name: np.asarray(each, np.float64).mean(axis=1) for name, each in block.items()} for block in maps]


def test_it_is_what_inducing_points_look_at():
    auto, x = made(), cells()
    first, second = (block["compress"].mean(axis=1) for block in maps_of(auto, x))
    np.testing.assert_allclose(received(auto, x), (first + second) / 2, atol=3e-5)
    np.testing.assert_allclose(received(auto, x, blocks=(1,)), second, atol=3e-5)


def test_roll_out_follows_tokens_through_the_points_block_by_block():
    auto, x = made(), cells(3)
    rolled = np.eye(4)[None]
    for block in maps_of(auto, x):
        through = block["broadcast"] @ (0.5 * np.eye(3) + 0.5 * block["process"]) @ block["compress"]
        rolled = (0.5 * np.eye(4) + 0.5 * through) @ rolled
    np.testing.assert_allclose(received(auto, x, "rollout"), rolled[:, [0, 1, 3]].mean(axis=1), atol=3e-5)


def test_plain_attention_leaves_the_queries_of_empty_modules_out():
    auto, x = made("transformer", depth=1), cells(3)
    (block,) = maps_of(auto, x)
    np.testing.assert_allclose(received(auto, x), block["self"][:, [0, 1, 3]].mean(axis=1), atol=3e-5)


def test_many_cells_sparse_or_dense_in_batches_of_one_shape():
    auto, x = made(), np.maximum(cells(600), 0)
    whole = received(auto, sp.csr_matrix(x))
    np.testing.assert_allclose(whole[510:515], received(auto, x[510:515]), atol=3e-5)
    assert received(auto, x[:0]).shape == (0, 4)


def test_refusals():
    with pytest.raises(InputError, match="encoder=mlp"):
        received(made("mlp"), cells())
    with pytest.raises(InputError, match="choose compress or rollout"):
        received(made(), cells(), "gradient")
    with pytest.raises(InputError, match="no block 2 in an encoder of 2"):
        received(made(), cells(), blocks=(0, 2))


class TestReport:
    ask = Ask(n_cells=40, draws=20, permutations=20)

    def test_real_and_predicted_shifts_side_by_side(self, tiny_run):
        view = load(tiny_run)
        big = view.obs["condition"].value_counts()
        wanted = (*[str(name) for name in big.index[1:4]], view.conditions("test")[0])
        section = attention.report(view, dataclasses.replace(self.ask, conditions=tuple(dict.fromkeys(wanted))))
        table = section.tables["attention_shift"]
        predicted = table[table["cells"] == "predicted"]
        assert set(predicted["condition"]) == set(wanted) and predicted["n_cells"].eq(40).all()
        real, left_out = table[table["cells"] == "real"], section.tables["attention_untested"]
        assert set(real["condition"]) | set(left_out["condition"]) == set(wanted)
        assert f"{len(real)} shifts" in section.text and "no evidence of cause" in section.text
        assert all(f"{name} in line1" in section.text for name in left_out["condition"])
        part = dict(zip(table["condition"], table["part"], strict=True))
        assert part[wanted[-1]] == "test" and set(part.values()) <= {"train", "val", "test"}
        # Attention sums to one over modules before and after, so shifts sum to nothing.
        sums = table.groupby(["cells", "condition"])["shift"].sum()
        np.testing.assert_allclose(sums, 0.0, atol=1e-5)
        assert set(section.tables["attention_agreement"]["condition"]) == set(real["condition"])
        for figure in section.figures:
            assert figure.draw().axes and figure.caption

    def test_a_condition_never_measured_is_predicted_and_named(self, tiny_run):
        view = load(tiny_run)
        singles = [name for name in view.predictor.vocabulary.trained if view.obs["condition"].eq(name).any()]
        pairs = ["+".join(sorted((a, b))) for a in singles for b in singles if a < b]
        novel = next(name for name in pairs if not view.obs["condition"].eq(name).any())
        section = attention.report(view, dataclasses.replace(self.ask, conditions=(novel,)))
        table = section.tables["attention_shift"]
        assert set(table["cells"]) == {"predicted"} and set(table["part"]) == {"not measured"}
        assert f"{novel} (no cells of it" in section.text
        for figure in section.figures:
            assert figure.draw().axes

    def test_an_encoder_without_attention_says_so(self, tiny_run):
        view = load(tiny_run)
        with view.settings.unlocked():
            view.settings.gcae.encoder = "mlp"
        section = attention.report(view, self.ask)
        assert "no attention" in section.text and not section.tables and not section.figures
