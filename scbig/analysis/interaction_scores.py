"""How two perturbations combine: coefficients, fit, dominance, and the departure from the sum of the singles.

From Norman et al. 2019 (Science 365:786): the double's effect as a robust linear combination of the singles', the
magnitude of the coefficients, distance correlations of fit and of singles, equality of contribution. Ours: the
departure from the exact sum, coefficients corrected for noise, and the rule that names a kind.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scbig.errors import InputError

__all__ = ["KINDS", "coefficients", "distance_correlation", "geometry", "kind_of_shape", "robust_fit", "score"]

KINDS = ("additive", "synergy", "suppression", "epistasis", "neomorphic")
"""More than the sum, less than it, one single's profile alone, or a profile that the singles do not explain."""

_DOMINANT = np.log10(3.0)  # |log10(c1 / c2)| from which one single's profile counts as the whole
_UNEXPLAINED = 0.5  # share of the double's power that the singles must explain
_RIDGE = 0.02  # on the coefficients towards their mean, relative to the power of the singles
_LEAST = 1e-12


def _centred(x: np.ndarray) -> np.ndarray:
    """Doubly centred distances between rows."""
    x = x.reshape(len(x), -1)
    if x.shape[1] == 1:
        d = np.abs(x - x.T)
    else:
        square = np.square(x).sum(axis=1)
        d = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0.0))
    mean = d.mean(axis=1)
    return d - mean[:, None] - mean + mean.mean()


def _correlated(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.vdot(a, a)) * float(np.vdot(b, b))
    return float(np.sqrt(max(float(np.vdot(a, b)), 0.0) / np.sqrt(size))) if size > 0 else 0.0


def distance_correlation(x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n ..."]) -> float:
    """Distance correlation of two samples, the biased (V-statistic) form, between 0 and 1.

    Székely, Rizzo and Bakirov 2007 (Annals of Statistics 35:2769), definition 4.

    Args:
        x: one row per observation, of any number of dimensions.
        y: the same observations, of any number of dimensions.
    """
    return _correlated(_centred(np.asarray(x, np.float64)), _centred(np.asarray(y, np.float64)))


def robust_fit(
    singles: Float[np.ndarray, "genes 2"], double: Float[np.ndarray, " genes"], method: str = "huber"
) -> tuple[float, float]:
    """Coefficients of the singles in the double, without intercept, by a robust regression over genes.

    Args:
        singles: effects of A and of B.
        double: effect of A and B together.
        method: ``huber`` (scipy, 1.345 robust standard deviations) or ``theil-sen`` (scikit-learn; slow).

    Raises:
        InputError: no such method.
    """
    size = float(np.sqrt(np.square(singles).mean()))
    if size < _LEAST:
        return 0.0, 0.0
    x, y = singles / size, double / size
    if method == "theil-sen":
        from sklearn.linear_model import TheilSenRegressor

        found = TheilSenRegressor(fit_intercept=False, max_subpopulation=10_000, random_state=0).fit(x, y).coef_
        return float(found[0]), float(found[1])
    if method != "huber":
        raise InputError(f"no robust fit '{method}'; there are: huber, theil-sen")
    from scipy.optimize import least_squares

    start = np.linalg.lstsq(x, y, rcond=None)[0]
    rest = y - x @ start
    scale = max(1.4826 * float(np.median(np.abs(rest - np.median(rest)))), 1e-6)
    found = least_squares(lambda c: x @ c - y, start, lambda c: x, loss="huber", f_scale=1.345 * scale, max_nfev=200).x
    return float(found[0]), float(found[1])


def coefficients(gram: Float[np.ndarray, "... 3 3"]) -> Float[np.ndarray, "... 2"]:
    """Least-squares coefficients from inner products of the effects of A, of B and of both.

    Inner products less those of the noise give coefficients that noise in the singles does not shrink (errors in
    variables; Fuller 1987). A weak ridge towards equal coefficients decides where the singles are too alike to tell.

    Args:
        gram: inner products, in the order A, B, both.
    """
    power = np.maximum(gram[..., 0, 0] + gram[..., 1, 1], _LEAST)
    ridge = _RIDGE * power
    a, b, c = gram[..., 0, 0] + ridge, gram[..., 1, 1] + ridge, gram[..., 0, 1] - ridge
    # A power below nothing, after noise is taken off, would turn the solution round.
    a, b = np.maximum(a, ridge), np.maximum(b, ridge)
    limit = np.sqrt(a * b) * (1 - 1e-6)
    c = np.clip(c, -limit, limit)
    u, v, det = gram[..., 0, 2], gram[..., 1, 2], a * b - c * c
    return np.stack([(b * u - c * v) / det, (a * v - c * u) / det], axis=-1)


def geometry(gram: Float[np.ndarray, "... 3 3"]) -> dict[str, np.ndarray]:
    """What the inner products of the three effects say of how they combine.

    Args:
        gram: inner products, in the order A, B, both; noise taken off where it is known.

    Returns:
        ``c1``, ``c2``, ``magnitude`` (√2 where effects add up), ``dominance`` (|log10(c1 / c2)|, at most 3), ``slope``
        (of the double on the sum: 1 where effects add up), ``explained`` (share of the double's power that the best
        combination of singles explains, 0 to 1), ``departure`` (length of the double less the sum) and ``relative``
        (that over the length of the sum).
    """
    c = coefficients(gram)
    a, b, d = gram[..., 0, 0], gram[..., 1, 1], gram[..., 2, 2]
    ab, ad, bd = gram[..., 0, 1], gram[..., 0, 2], gram[..., 1, 2]
    total = np.maximum(a + b + 2 * ab, _LEAST)
    away = np.maximum(d + a + b + 2 * ab - 2 * ad - 2 * bd, 0.0)
    c1, c2 = c[..., 0], c[..., 1]
    told = 2 * (c1 * ad + c2 * bd) - (c1 * c1 * a + c2 * c2 * b + 2 * c1 * c2 * ab)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(np.log10(np.abs(c1) / np.abs(c2)))
    return {
        "c1": c1,
        "c2": c2,
        "magnitude": np.hypot(c1, c2),
        "dominance": np.minimum(np.nan_to_num(ratio, nan=0.0, posinf=3.0), 3.0),
        "slope": (ad + bd) / total,
        "explained": np.clip(told / np.maximum(d, _LEAST), 0.0, 1.0),
        "departure": np.sqrt(away),
        "relative": np.sqrt(away / total),
    }


def kind_of_shape(found: dict[str, np.ndarray]) -> np.ndarray:
    """The kind that the shape of a departure is nearest to; whether there is one must be tested apart.

    Neomorphic where the singles explain less than half of the double's power; epistasis where one coefficient is
    three times the other; else synergy or suppression by whether the double goes beyond the sum.
    """
    out = np.where(found["slope"] > 1.0, "synergy", "suppression")
    out = np.where(found["dominance"] > _DOMINANT, "epistasis", out)
    return np.where(found["explained"] < _UNEXPLAINED, "neomorphic", out)


def score(
    delta_a: Float[np.ndarray, " genes"],
    delta_b: Float[np.ndarray, " genes"],
    delta_ab: Float[np.ndarray, " genes"],
    method: str = "huber",
) -> dict[str, float | str]:
    """Interaction scores of a pair from three effects, noise not taken into account.

    Args:
        delta_a: effect of A, mean log-expression minus control's, the perturbed genes left out.
        delta_b: effect of B.
        delta_ab: effect of both.
        method: of the robust regression, see :func:`robust_fit`.

    Returns:
        After Norman et al.: ``c1``, ``c2``, ``magnitude``, ``fit`` (distance correlation of fitted and observed),
        ``similarity`` (of the singles), ``joint`` (of both singles together with the double), ``equality`` (of
        contribution: the smaller over the larger distance correlation of a single with the double) and ``dominance``
        (|log10(c1 / c2)|). Ours: ``slope``, ``explained``, ``departure``, ``relative`` (see :func:`geometry`) and
        ``nearest``, the kind that its shape is nearest to.

    Raises:
        InputError: effects of different or no genes, or values that are not finite.
    """
    effects = [np.asarray(each, np.float64) for each in (delta_a, delta_b, delta_ab)]
    sizes = [len(each) for each in effects]
    if len(set(sizes)) > 1 or sizes[0] < 3:
        raise InputError(f"the three effects have {sizes} genes: the same genes are needed, three at least")
    if not all(np.isfinite(each).all() for each in effects):
        raise InputError("an effect holds values that are not finite; leave these genes out")
    stacked = np.stack(effects)
    found = geometry(stacked @ stacked.T)
    told: dict[str, float | str] = {name: float(value) for name, value in found.items()}
    told["nearest"] = str(kind_of_shape(found))
    a, b, ab = effects
    c1, c2 = robust_fit(stacked[:2].T, ab, method)
    ratio = abs(np.log10(max(abs(c1), _LEAST) / max(abs(c2), _LEAST)))
    told |= {"c1": c1, "c2": c2, "magnitude": float(np.hypot(c1, c2)), "dominance": float(min(ratio, 3.0))}
    centred_a, centred_b, centred_ab = (_centred(each) for each in effects)
    first, second = _correlated(centred_a, centred_ab), _correlated(centred_b, centred_ab)
    return told | {
        "fit": _correlated(_centred(c1 * a + c2 * b), centred_ab),
        "similarity": _correlated(centred_a, centred_b),
        "joint": _correlated(_centred(stacked[:2].T), centred_ab),
        "equality": min(first, second) / max(first, second, _LEAST),
    }
