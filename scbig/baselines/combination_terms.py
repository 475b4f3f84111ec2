"""The parts of the combination model: noise, kernels over sets of perturbed genes, smoothing, and what one gene tells."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from scbig.data.conditions import genes_of

__all__ = ["PLAIN", "Basis", "Fitted", "Setting", "basis_of", "row_noise", "smooth"]

_COMPONENTS = 80  # at most; what is beyond is left to single genes
_NOISE_RANK = 20  # components taken for signal where the noise of each condition is measured
_LEAST = 0.05  # floor on leverages and on a gene's noise, as a share of what is usual
_MEAN = 0.05  # variance of what all conditions, and all combinations, share
_RIDGE = 0.1  # on a gene's own details, in units of the noise of one condition
_RATIOS = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 25))
"""Ratios of signal to noise of one component that are tried by their likelihood."""


@dataclass(frozen=True)
class Setting:
    """How much of each term there is; variances are relative to that of a single's effect.

    Attributes:
        attenuation: what a gene's effect counts in a combination; 1: effects add up.
        own: variance of what is particular to one combination.
        shared: variance of what a gene brings into all of its combinations and does not do alone.
        interactions: variance of what pairs of like genes do alike beyond their sum.
        details: how many standard errors a gene-wise effect must have, beside the components, to keep half of it;
            infinity keeps none.
    """

    attenuation: float
    own: float
    shared: float
    interactions: float
    details: float


PLAIN = Setting(1.0, 0.3, 0.0, 0.0, float("inf"))
"""No term at all: denoised effects that add up, and something of its own in every combination."""


@dataclass(frozen=True)
class Basis:
    """Training effects in their components, and what is known of genes and pairs before any term is weighed.

    Attributes:
        names: conditions, sorted.
        effects: one row per condition.
        noise: variance of the noise of each row, 1 on (geometric) average.
        loading: the effects in the components, ``[conditions, components]``.
        vectors: the components, ``[components, genes]``.
        genes: perturbed genes, sorted.
        share: which of them each condition has, ``[conditions, perturbed]``.
        told: from what is left over of the training effects to what each perturbed gene has of it,
            ``[perturbed, conditions]``.
        told_error: its standard error, by perturbed gene, where the noise of a condition is 1.
        responses: denoised effect of each perturbed gene alone, in coordinates in which genes are compared.
        widths: usual squared distances, by which kernels are scaled: of single genes, and of sums of pairs.
        kernel: likeness of the interactions of the training conditions.
    """

    names: tuple[str, ...]
    effects: np.ndarray
    noise: np.ndarray
    loading: np.ndarray
    vectors: np.ndarray
    genes: tuple[str, ...]
    share: np.ndarray
    told: np.ndarray
    told_error: np.ndarray
    responses: np.ndarray
    widths: tuple[float, float]
    kernel: np.ndarray

    def incidence(self, names: Sequence[str]) -> np.ndarray:
        """Which perturbed genes each condition has; genes no training condition has are left out."""
        return _incidence(names, self.genes)

    def interactions(self, names: Sequence[str]) -> np.ndarray:
        """Likeness of the interactions of conditions to those of the training conditions."""
        return _alike(names, self.names, self.genes, self.responses, self.widths)

    def covariance(self, names: Sequence[str], setting: Setting, alike: np.ndarray) -> np.ndarray:
        """Between conditions not measured and the training conditions; ``alike`` from :meth:`interactions`."""
        here = self.incidence(names)
        # A gene that no training condition has still makes a combination of its condition.
        one = np.array([len(genes_of(n)) > 1 for n in names], np.float64)
        two = (self.share.sum(axis=1) > 1).astype(np.float64)
        common, both = here @ self.share.T, one[:, None] * two
        factor = [np.where(combined > 0, setting.attenuation, 1.0) for combined in (one, two)]
        summed = common * factor[0][:, None] * factor[1]
        return summed + _MEAN + (setting.shared * common + _MEAN) * both + setting.interactions * alike


@dataclass(frozen=True)
class Fitted:
    """Effects of conditions by one setting.

    Attributes:
        basis: what it was fitted on.
        setting: how much of each term.
        coefficients: of the training conditions, ``[conditions, components]``.
        details: gene-wise effects of each perturbed gene beside the components, ``[perturbed, genes]``.
    """

    basis: Basis
    setting: Setting
    coefficients: np.ndarray
    details: np.ndarray

    def predict(self, names: Sequence[str], alike: np.ndarray | None = None) -> Float[np.ndarray, "n genes"]:
        """Effects of conditions as though none of them had been measured."""
        alike = self.basis.interactions(names) if alike is None else alike
        found = self.basis.covariance(names, self.setting, alike) @ self.coefficients @ self.basis.vectors
        return found + self.basis.incidence(names) @ self.details


def row_noise(effects: Float[np.ndarray, "conditions genes"]) -> Float[np.ndarray, " conditions"]:
    """Variance of the noise of each condition, relative to the others.

    What the leading components leave over, gene by gene relative to what is usual there. Conditions that drive a
    component leave less than their noise, and are scaled up by their leverage.
    """
    rank = max(min(_NOISE_RANK, len(effects) // 3), 1)
    u = _components(effects)[0][:, :rank]
    lever = np.square(u).sum(axis=1)
    rest = np.square(effects - u @ (u.T @ effects)) / np.maximum(1 - lever, _LEAST)[:, None]
    if not rest.mean() > 1e-12 * np.square(effects).mean():
        return np.ones(len(effects))  # without noise
    rows = np.ones(len(effects))
    for _ in range(10):
        genes = (rest / rows[:, None]).mean(axis=0)
        genes = np.maximum(genes, _LEAST * genes.mean())
        rows = (rest / genes).mean(axis=1)
        rows = np.maximum(rows, _LEAST * rows.mean())
        rows /= np.exp(np.log(rows).mean())
    return rows


def basis_of(
    effects: Mapping[str, Float[np.ndarray, " genes"]],
    weighted: bool = True,
    modules: Sequence[Sequence[int]] | None = None,
) -> Basis:
    """Components of training effects, and how alike perturbed genes are.

    Args:
        effects: by condition.
        weighted: whether conditions count by their noise; all the same otherwise.
        modules: columns of the genes in each module: then perturbed genes are compared by the mean response of
            modules, rather than in the components.
    """
    names = tuple(sorted(effects))
    x = np.stack([effects[n] for n in names])
    noise = row_noise(x) if weighted else np.ones(len(x))
    vectors = _components(x / np.sqrt(noise)[:, None])[1][:_COMPONENTS]
    loading = x @ vectors.T
    genes = tuple(sorted({g for n in names for g in genes_of(n)}))
    none = np.zeros((len(names), len(names)))
    share = _incidence(names, genes)
    gram = share.T @ (share / noise[:, None])
    solved = np.linalg.inv(gram + _RIDGE * np.eye(len(genes)))
    told, error = solved @ (share / noise[:, None]).T, np.sqrt(np.diag(solved @ gram @ solved))
    basis = Basis(
        names, x, noise, loading, vectors, genes, share, told, error, np.zeros((len(genes), 1)), (1.0, 1.0), none
    )
    coefficients, _ = _coefficients(basis, PLAIN)
    responses = basis.covariance(genes, PLAIN, np.zeros((len(genes), len(names)))) @ coefficients
    if modules is not None:
        responses = np.stack([(responses @ vectors[:, list(m)]).mean(axis=1) for m in modules], axis=1)
    pairs = _pairs(names)
    at = {g: i for i, g in enumerate(genes)}
    sums = np.stack([responses[at[a]] + responses[at[b]] for a, b in pairs]) if pairs else responses
    widths = (_usual(_distances(responses, responses)), _usual(_distances(sums, sums)))
    kernel = _alike(names, names, genes, responses, widths)
    return replace(basis, responses=responses, widths=widths, kernel=kernel)


def smooth(basis: Basis, setting: Setting, wanted: Collection[str] | None = None) -> Fitted:
    """Fits one setting.

    Each component is a Gaussian process over conditions; how much of it is signal maximises its likelihood. What is
    left over of the effects is shared out to the perturbed genes, gene by gene, and kept as far as it stands out of
    the noise.

    Args:
        basis: training effects.
        setting: how much of each term.
        wanted: perturbed genes of the conditions that will be asked for; all when None.
    """
    coefficients, fit = _coefficients(basis, setting)
    if not np.isfinite(setting.details):
        return Fitted(basis, setting, coefficients, np.zeros((len(basis.genes), basis.effects.shape[1])))
    told, error = basis.told, basis.told_error
    if wanted is not None:
        at = [i for i, g in enumerate(basis.genes) if g in wanted]
        told, error = told[at], error[at]
    rest = basis.effects - fit @ basis.vectors
    found = told @ rest
    usual = (np.square(rest) / basis.noise[:, None]).mean(axis=0)
    ratio = np.square(found) / np.maximum(np.square(setting.details * error)[:, None] * usual, 1e-30)
    found *= ratio / (1.0 + ratio)
    if wanted is not None:
        details = np.zeros((len(basis.genes), rest.shape[1]))
        details[at] = found
        found = details
    return Fitted(basis, setting, coefficients, found)


def _coefficients(basis: Basis, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the training conditions, and the smoothed training effects, both by component."""
    covariance = basis.covariance(basis.names, setting, basis.kernel)
    covariance += np.diag(setting.own * (basis.share.sum(axis=1) > 1))
    scale = 1.0 / np.sqrt(basis.noise)
    size, axes = np.linalg.eigh(covariance * scale[:, None] * scale)
    size = np.maximum(size, 0.0)
    seen = axes.T @ (basis.loading * scale[:, None])
    spread = _RATIOS[:, None] * size + 1.0
    noise = np.maximum((1.0 / spread) @ np.square(seen) / len(size), 1e-300)
    likelihood = -0.5 * (len(size) * np.log(noise) + np.log(spread).sum(axis=1)[:, None])
    ratio = _RATIOS[np.argmax(likelihood, axis=0)]
    coefficients = scale[:, None] * (axes @ (seen * ratio / (ratio * size[:, None] + 1.0)))
    return coefficients, covariance @ coefficients


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right singular vectors, leading ones first, by the small matrix of inner products."""
    size, u = np.linalg.eigh(x @ x.T)
    kept = np.flatnonzero(size > 1e-12 * size[-1])[::-1]
    u = u[:, kept]
    return u, (u.T @ x) / np.sqrt(size[kept])[:, None]


def _incidence(names: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    at = {g: i for i, g in enumerate(genes)}
    out = np.zeros((len(names), len(genes)))
    for i, name in enumerate(names):
        out[i, [at[g] for g in genes_of(name) if g in at]] = 1.0
    return out


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Unordered pairs of genes in the conditions, sorted."""
    return sorted({p for n in names for p in itertools.combinations(sorted(genes_of(n)), 2)})


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2.0 * x @ y.T, 0.0)


def _usual(distances: np.ndarray) -> float:
    return float(np.median(distances)) or 1.0


def _alike(
    here: Sequence[str], there: Sequence[str], genes: Sequence[str], responses: np.ndarray, widths
) -> np.ndarray:
    """Likeness of interactions: of the sums, and of the genes one by one in whichever order fits.

    A combination of more than two genes has the interactions of all its pairs; a single has none.
    """
    at = {g: i for i, g in enumerate(genes)}
    sides = []
    for names in (here, there):
        pairs = [p for p in _pairs(names) if p[0] in at and p[1] in at]
        number = {p: i for i, p in enumerate(pairs)}
        member = np.zeros((len(names), len(pairs)))
        for i, name in enumerate(names):
            member[i, [number[p] for p in _pairs([name]) if p in number]] = 1.0
        sides.append((member, np.array([[at[a], at[b]] for a, b in pairs], np.int64).reshape(-1, 2)))
    (left, a), (right, b) = sides
    if not len(a) or not len(b):
        return np.zeros((len(here), len(there)))
    gene = np.exp(-_distances(responses, responses) / widths[0])
    straight = gene[np.ix_(a[:, 0], b[:, 0])] * gene[np.ix_(a[:, 1], b[:, 1])]
    crossed = gene[np.ix_(a[:, 0], b[:, 1])] * gene[np.ix_(a[:, 1], b[:, 0])]
    sums = np.exp(-_distances(responses[a].sum(axis=1), responses[b].sum(axis=1)) / widths[1])
    return left @ (0.25 * (straight + crossed) + 0.5 * sums) @ right.T
