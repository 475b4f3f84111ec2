"""What the encoder looks at: how the attention that each module receives shifts under a perturbation (figure 4).

Attention says where the encoder takes what it writes into the latent from. That it moves towards a module in perturbed
cells says that the module's state stands out there; it does not say that the module causes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Array, Float

from scbig.analysis import permutation, shift
from scbig.analysis.moves import module_scores
from scbig.analysis.section import Ask, Figure, Section
from scbig.data.conditions import CONTROL
from scbig.errors import InputError
from scbig.training.autoencoder import Autoencoder

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["HOW", "received", "report"]

HOW = ("compress", "rollout")
"""Ways to reckon the attention that a module receives."""

_BATCH = 512
_CHUNK = 20  # conditions predicted at once


def received(
    auto: Autoencoder, x: Any, how: str = "compress", blocks: Sequence[int] = ()
) -> Float[np.ndarray, "cells modules"]:
    """Attention that each module's token receives in each cell; over modules it sums to one.

    Args:
        auto: a trained autoencoder.
        x: log-expression ``[cells, genes]``, dense or CSR, genes in the order the autoencoder was trained on.
        how: ``compress``: the weight with which inducing points look at the token, the mean over points, heads and blocks.
            ``rollout``: blocks one after another, each half its input and half what its tokens get of each other through
            the inducing points (Abnar and Zuidema 2020), the mean over the tokens that are read out. With plain
            self-attention, tokens take the place of inducing points.
        blocks: of the encoder, from 0; all where empty.

    Raises:
        InputError: for an encoder without attention, another ``how``, or a block that is not there.
    """
    config = auto.network().config
    if config.encoder == "mlp":
        raise InputError(
            "this run's encoder (gcae.encoder=mlp) has no attention; train one with induced or transformer"
        )
    if how not in HOW:
        raise InputError(f"how={how!r}: choose {' or '.join(HOW)}")
    chosen = tuple(int(block) for block in blocks) or tuple(range(config.depth))
    outside = [block for block in chosen if not 0 <= block < config.depth]
    if outside:
        raise InputError(f"no block {outside[0]} in an encoder of {config.depth} blocks, which are counted from 0")
    parts = [np.empty((0, auto.network().shape[0]), np.float32)]
    for start in range(0, x.shape[0], _BATCH):
        part = x[start : start + _BATCH]
        dense = np.asarray(part.toarray() if sp.issparse(part) else part, np.float32)
        # One shape, so that it compiles once for any number of cells.
        whole = np.concatenate([dense, np.zeros((_BATCH - len(dense), dense.shape[1]), np.float32)])
        parts.append(np.asarray(_received(auto, whole, how=how, blocks=chosen))[: len(dense)])
    return np.concatenate(parts)


@partial(jax.jit, static_argnames=("how", "blocks"))
def _received(
    auto: Autoencoder, x: Float[Array, "cells genes"], *, how: str, blocks: tuple[int, ...]
) -> Float[Array, "cells modules"]:
    network = auto.network()
    _, maps = network.encode(x - auto.gene_mean[None])
    used = jnp.any(network.mask[...], axis=1).astype(jnp.float32)
    maps = [{name: weights.mean(axis=1) for name, weights in maps[block].items()} for block in blocks]
    if how == "compress":
        each = [one["compress"].mean(axis=1) if "compress" in one else _over_tokens(one["self"], used) for one in maps]
        return jnp.stack(each).mean(axis=0)
    half, rolled = 0.5 * jnp.eye(used.shape[0])[None], jnp.eye(used.shape[0])[None]
    for one in maps:
        if "self" in one:
            between = one["self"]
        else:
            points = 0.5 * jnp.eye(one["process"].shape[-1])[None] + 0.5 * one["process"]
            between = one["broadcast"] @ points @ one["compress"]
        rolled = (half + 0.5 * between) @ rolled
    return _over_tokens(rolled, used)


def _over_tokens(weights: Float[Array, "cells queries keys"], used: Float[Array, " queries"]) -> Array:
    """Mean over the tokens of modules that have genes."""
    return (weights * used[None, :, None]).sum(axis=1) / used.sum()


def report(view: View, ask: Ask) -> Section:
    """Shifts of attention in the conditions asked for, or in those of the test part: real and predicted."""
    if view.settings.gcae.encoder == "mlp":
        return Section("Shift of attention", "The encoder of this run (gcae.encoder=mlp) has no attention to look at.")
    from scbig.analysis.modules import labels

    names = labels(view)
    wanted = list(ask.conditions or view.conditions("test"))
    chance = {"draws": ask.draws, "permutations": ask.permutations, "seed": ask.seed}
    labelled = view.obs["condition"].astype(str).to_numpy()
    rows = np.flatnonzero(np.isin(labelled, [CONTROL, *wanted]))
    obs, x = view.obs.iloc[rows], view.adata.X[rows]
    nuisance, handled = permutation.nuisance_of(obs, view.scores[rows])
    auto = view.predictor.auto
    real, left_out, real_draws = shift.shifts(received(auto, x), obs, wanted, nuisance=nuisance, **chance)
    predicted, draws = _predicted(view, ask, wanted, chance)
    real, predicted = (table.assign(called=table["q"] < ask.alpha) for table in (real, predicted))
    agreed = shift.agreement(real, predicted, real_draws, draws)
    agreed.insert(2, "part", [_part(view, *key) for key in zip(agreed["condition"], agreed["context"], strict=True)])
    # An empty table has no types of columns to agree on.
    both = real.assign(cells="real"), predicted.assign(cells="predicted")
    table = pd.concat([each for each in both if len(each)] or both, ignore_index=True)
    table.insert(2, "part", [_part(view, *key) for key in zip(table["condition"], table["context"], strict=True)])
    table.insert(3, "cells", table.pop("cells"))
    table.insert(table.columns.get_loc("module") + 1, "label", [names[k] for k in table["module"]])
    tables = {"attention_shift": table, "attention_agreement": agreed, "attention_untested": left_out}
    text = _told(table, agreed, left_out, handled, ask)
    return Section("Shift of attention", text, tables, _figures(table, agreed, names, ask))


def _part(view: View, condition: str, context: str) -> str:
    """The part of the split that a condition is in, in a context."""
    here = (view.obs["condition"].astype(str) == condition) & (view.obs["context"].astype(str) == context)
    return "+".join(sorted(set(view.part[here.to_numpy()]))) or "not measured"


def _groups(view: View, wanted: Sequence[str]) -> dict[float, list[tuple[str, str]]]:
    """Conditions and contexts to predict, by dose: as they were measured, else in every context of the run."""
    obs = view.obs[view.obs["condition"].astype(str).isin(wanted)]
    dose = pd.to_numeric(obs["dose"]).fillna(0.0) if "dose" in obs else pd.Series(0.0, obs.index)
    measured = set(zip(dose.astype(float), obs["condition"].astype(str), obs["context"].astype(str), strict=True))
    known = {condition for _, condition, _ in measured}
    contexts = view.predictor.vocabulary.contexts
    measured |= {
        (0.0, condition, str(context)) for condition in wanted if condition not in known for context in contexts
    }
    out: dict[float, list[tuple[str, str]]] = {}
    for at, condition, context in sorted(measured):
        out.setdefault(at, []).append((condition, context))
    return out


def _predicted(view: View, ask: Ask, wanted: Sequence[str], chance: dict[str, int]) -> tuple[pd.DataFrame, shift.Draws]:
    """Shifts in predicted cells, each against the control it started from."""
    run = view.predictor
    base, sized = received(run.auto, run.x0), view.obs.loc[run.controls.index]
    scored = module_scores(run.x0, view.modules)
    cells, sources, obs, after, before = [], [], [], [], []
    for dose, groups in _groups(view, wanted).items():
        for start in range(0, len(groups), _CHUNK):
            conditions, contexts = zip(*groups[start : start + _CHUNK], strict=True)
            made = run.sample(conditions, ask.n_cells, context=contexts, dose=dose, seed=ask.seed)
            place = run.controls.index.get_indexer(made.obs["source_cell"].astype(str))
            cells.append(received(run.auto, made.X))
            sources.append(base[place])
            # A predicted cell has the depth of the control that it started from. One call for both: the same centre.
            both = np.concatenate([module_scores(made.X, view.modules), scored[place]])
            columns, _ = permutation.nuisance_of(sized.iloc[np.tile(place, 2)], both)
            after.append(columns[: len(place)])
            before.append(columns[len(place) :])
            obs.append(
                pd.DataFrame({name: made.obs[name].astype(str) for name in ("condition", "context")} | {"dose": dose})
            )
    return shift.predicted_shifts(
        np.concatenate(cells),
        np.concatenate(sources),
        pd.concat(obs, ignore_index=True),
        nuisance=(np.concatenate(after), np.concatenate(before)),
        **chance,
    )


def _told(table: pd.DataFrame, agreed: pd.DataFrame, left_out: pd.DataFrame, handled: str, ask: Ask) -> str:
    """What was found, in sentences."""
    said = []
    real = table[table["cells"] == "real"]
    if len(real):
        called = real[real["called"]].sort_values("effect", key=abs, ascending=False)
        n_conditions = real.groupby(["condition", "context"]).ngroups
        said.append(
            f"In {n_conditions} condition{'s' * (n_conditions != 1)} with real cells, {len(real)} shifts of the attention "
            f"that a module receives were tested; {len(called)} are real at a false discovery rate of {ask.alpha:g}."
        )
        said += [
            f"In {row['condition']} ({row['part']}), {row['label']} went from {row['control']:.1%} to "
            f"{row['perturbed']:.1%} of the attention ({row['effect']:+.2f} standard deviations of control cells, q = "
            f"{row['q']:.2g})."
            for row in called.head(3).to_dict("records")
        ]
    if len(agreed) and agreed["r"].notna().any():
        agreement = (
            f"Over modules the predicted shift agrees with the real one at r = {agreed['r'].median():.2f} (median of "
            f"{len(agreed)} conditions)"
        )
        if agreed["ceiling"].notna().any():
            agreement += (
                f", where noise in the real cells leaves a perfect prediction about {agreed['ceiling'].median():.2f}"
            )
        if agreed["r_others"].notna().any():  # needs a second condition
            agreement += (
                f"; with the real shifts of the other conditions it agrees at {agreed['r_others'].median():.2f}"
            )
        said.append(f"{agreement}.")
    said.append(
        "Attention is the weight with which the inducing points (or, in a plain transformer, the tokens) look at a module, "
        f"the mean over heads and blocks. Cells are compared within context and batch, less {handled}; predicted cells with "
        "the controls they started from, so that their test says what the model moves, not that it is right."
    )
    said.append(
        "Attention says where the encoder looks. It is no evidence of cause, and a plain comparison of module scores can "
        "be the sharper instrument."
    )
    if len(left_out):
        each = [
            f"{row['condition']}{' in ' + row['context'] if row['context'] else ''} ({row['reason']})"
            for row in left_out.head(6).to_dict("records")
        ]
        more = f" and {len(left_out) - 6} more, see the table" if len(left_out) > 6 else ""
        said.append(f"Real cells not tested: {'; '.join(each)}{more}.")
    return " ".join(said)


def _figures(table: pd.DataFrame, agreed: pd.DataFrame, names: tuple[str, ...], ask: Ask) -> list[Figure]:
    from scbig.analysis import mechanism_figures as drawn

    shown = drawn.telling(table)
    figures = [
        Figure(
            "attention_map",
            "Shift of the attention that each module receives, in standard deviations over control cells. Coloured: real at "
            f"a false discovery rate of {ask.alpha:g}; pale grey: not to be told from chance. Predicted cells are compared "
            "with the controls they started from.",
            lambda: drawn.attention_map(table, names),
        ),
        Figure(
            "attention_condition",
            f"{shown[0]} ({shown[2]}). Left: share of the encoder's attention that each module receives in control and in "
            "perturbed cells. Right: its shift with bootstrap 95% intervals over cells. Filled: real at a false discovery "
            f"rate of {ask.alpha:g}; hollow: not to be told from chance.",
            lambda: drawn.attention_condition(table, names),
        ),
    ]
    if len(agreed):
        figures.append(
            Figure(
                "attention_agreement",
                "Correlation over modules of the predicted with the real shift of attention, with 95% intervals over cells. "
                "Bar: what noise in the real cells leaves to a perfect prediction.",
                lambda: drawn.agreement(agreed),
            )
        )
    return figures
