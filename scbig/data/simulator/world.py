"""What is planted: modules, regulators, wiring, perturbed genes, and the rule of interactions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from scbig.data.simulator.config import SimConfig
from scbig.errors import InputError

__all__ = ["KIND_OF_RELATION", "Double", "World", "build", "relation"]

KIND_OF_RELATION = {
    "same": "buffering",
    "upstream": "masking",
    "shared": "synergistic",
    "disjoint": "additive",
}
"""The rule: the relation of the two genes' modules decides how their perturbations combine."""

# Share of the doubles each kind is given, as far as the wiring has such pairs.
_QUOTA = {"additive": 0.4, "synergistic": 0.2, "buffering": 0.2, "masking": 0.2}


@dataclass(frozen=True)
class Double:
    """A pair of perturbed genes (indices into ``World.perturbed``), its relation and its kind."""

    first: int
    second: int
    relation: str
    kind: str
    epistatic: int = -1  # masking only: the one (first or second) whose effect replaces the other's


@dataclass(frozen=True)
class World:
    """All that is fixed before any cell is drawn; K modules, G genes, P perturbed genes.

    Attributes:
        genes: symbols, sorted.
        module: module of each gene, ``[G]``.
        regulator: +1 activator, -1 repressor of its module, 0 no regulator, ``[G]``.
        loading: log-rate of a gene per unit of module activity, ``[K, G]``; mostly the gene's own module.
        wiring: direct influence of module (row) on module (column), acyclic, signed, ``[K, K]``.
        response: for each context the response of modules to an impulse, (I − wiring)⁻¹, ``[contexts, K,
            K]``.
        baseline: log-rates of unperturbed cells, ``[contexts, G]``.
        batch: shift of log-rates by batch, ``[batches, G]``.
        dispersion: α of each gene, ``[G]``.
        cycle: the two modules that follow the cell cycle.
        perturbed: gene index of each perturbed gene, ``[P]``.
        impulse: what each perturbation does to module activities before it spreads, ``[P, K]``.
        own: log fold change of the perturbed gene itself, ``[P]``.
        escape: share of cells in which the perturbation fails, ``[P]``.
        competence: strength of each module's response by context, ``[contexts, K]``.
        doubles: the pairs.
    """

    genes: np.ndarray
    module: Int[np.ndarray, " G"]
    regulator: Int[np.ndarray, " G"]
    loading: Float[np.ndarray, "K G"]
    wiring: Float[np.ndarray, "K K"]
    response: Float[np.ndarray, "contexts K K"]
    baseline: Float[np.ndarray, "contexts G"]
    batch: Float[np.ndarray, "batches G"]
    dispersion: Float[np.ndarray, " G"]
    cycle: tuple[int, int]
    perturbed: Int[np.ndarray, " P"]
    impulse: Float[np.ndarray, "P K"]
    own: Float[np.ndarray, " P"]
    escape: Float[np.ndarray, " P"]
    competence: Float[np.ndarray, "contexts K"]
    doubles: tuple[Double, ...]


def relation(wiring: Float[np.ndarray, "K K"], a: int, b: int) -> str:
    """How modules ``a`` and ``b`` stand to each other in the wiring.

    Returns:
        ``same``; ``upstream`` (one acts on the other directly); ``shared`` (both act on a third);
        ``disjoint``.
    """
    if a == b:
        return "same"
    if wiring[a, b] != 0 or wiring[b, a] != 0:
        return "upstream"
    return "shared" if np.any((wiring[a] != 0) & (wiring[b] != 0)) else "disjoint"


def build(config: SimConfig, rng: np.random.Generator) -> World:
    """Plants a world as the configuration says.

    Raises:
        InputError: the modules have too few regulators for ``n_singles``.
    """
    n_genes, n_modules = config.n_genes, config.n_modules
    digits = max(4, len(str(n_genes)))
    genes = np.array([f"G{i + 1:0{digits}d}" for i in range(n_genes)])
    module = rng.permutation(np.arange(n_genes) % n_modules)
    regulator = _regulators(module, n_modules, config.regulator_share, rng)
    wiring = _wire(n_modules, rng)
    perturbed = _choose_perturbed(config, module, regulator, rng)
    cycle = tuple(int(k) for k in rng.choice(n_modules, 2, replace=False))
    strength = np.exp(rng.normal(0, 0.3, perturbed.size))
    strength[rng.random(perturbed.size) < config.weak_share] *= 0.25
    sign = {"activation": 1.0, "knockdown": -1.0}[config.direction]
    impulse = np.zeros((perturbed.size, n_modules))
    main = module[perturbed]
    impulse[np.arange(perturbed.size), main] = sign * strength * regulator[perturbed]
    # Each regulator also touches one module of its own choice, so that two regulators of a module differ.
    other = (main + rng.integers(1, n_modules, perturbed.size)) % n_modules
    impulse[np.arange(perturbed.size), other] = 0.4 * strength * rng.choice([-1.0, 1.0], perturbed.size)
    competence, response = _contexts(config, wiring, rng)
    shift = np.zeros((config.n_contexts, n_genes))
    shift[1:] = rng.normal(0, 0.7, (config.n_contexts - 1, n_genes)) * (rng.random(n_genes) < 0.5)
    return World(
        genes=genes,
        module=module,
        regulator=regulator,
        loading=_loadings(module, n_modules, rng),
        wiring=wiring,
        response=response,
        baseline=rng.normal(0, config.baseline_sigma, n_genes) + shift,
        batch=rng.normal(0, config.batch_sigma, (config.n_batches, n_genes)) * (config.n_batches > 1),
        dispersion=np.clip(np.exp(rng.normal(np.log(config.dispersion), 0.4, n_genes)), 0.02, 3.0),
        cycle=cycle,
        perturbed=perturbed,
        impulse=impulse,
        own=sign * rng.uniform(1.5, 3.0, perturbed.size),
        escape=rng.uniform(config.escape[0], config.escape[1], perturbed.size),
        competence=competence,
        doubles=_choose_doubles(config.n_doubles, main, wiring, rng),
    )


def _regulators(module: np.ndarray, n_modules: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """+1 or −1 for the regulators of each module: four activators to one repressor."""
    regulator = np.zeros(module.size, dtype=np.int64)
    for k in range(n_modules):
        members = rng.permutation(np.flatnonzero(module == k))
        chosen = members[: max(1, round(share * members.size))]
        regulator[chosen] = np.where(rng.random(chosen.size) < 0.2, -1, 1)
    return regulator


def _wire(n_modules: int, rng: np.random.Generator) -> np.ndarray:
    """Two downstream targets per module along a random order: acyclic, so the response is finite."""
    wiring = np.zeros((n_modules, n_modules))
    order = rng.permutation(n_modules)
    appeal = rng.gamma(1.0, size=n_modules) + 0.1
    for place, k in enumerate(order[:-1]):
        later = order[place + 1 :]
        targets = rng.choice(later, min(2, later.size), replace=False, p=appeal[later] / appeal[later].sum())
        signs = np.where(rng.random(targets.size) < 0.3, -1, 1)
        wiring[k, targets] = signs * rng.uniform(0.3, 0.6, targets.size)
    return wiring


def _loadings(module: np.ndarray, n_modules: int, rng: np.random.Generator) -> np.ndarray:
    loading = np.zeros((n_modules, module.size))
    gene = np.arange(module.size)
    loading[module, gene] = np.abs(rng.normal(0.8, 0.25, gene.size)) * np.where(rng.random(gene.size) < 0.1, -1, 1)
    # A tenth of the genes also follow a second module, weakly.
    extra = gene[rng.random(gene.size) < 0.1]
    loading[(module[extra] + rng.integers(1, n_modules, extra.size)) % n_modules, extra] = 0.3
    return loading


def _contexts(config: SimConfig, wiring: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The first context is the wiring as it is; the second has other weights, lost edges and deaf modules."""
    identity = np.eye(config.n_modules)
    competence = np.ones((config.n_contexts, config.n_modules))
    response = np.empty((config.n_contexts, *wiring.shape))
    for c in range(config.n_contexts):
        local = wiring
        if c > 0:
            local = wiring * np.exp(rng.normal(0, 0.3, wiring.shape)) * (rng.random(wiring.shape) > 0.2)
            competence[c] = np.where(rng.random(config.n_modules) < 0.2, 0.2, rng.uniform(0.7, 1.3, config.n_modules))
        response[c] = np.linalg.inv(identity - local)
    return competence, response


def _choose_perturbed(
    config: SimConfig, module: np.ndarray, regulator: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Regulators to perturb, two or more from each chosen module so that pairs within a module exist."""
    candidates = {k: np.flatnonzero((module == k) & (regulator != 0)) for k in range(config.n_modules)}
    per_module = max(2, -(-config.n_singles // config.n_modules))
    chosen: list[int] = []
    for k in rng.permutation(config.n_modules):
        take = min(per_module, config.n_singles - len(chosen), candidates[k].size)
        chosen.extend(rng.permutation(candidates[k])[:take].tolist())
    if len(chosen) < config.n_singles:
        raise InputError(
            f"n_singles={config.n_singles} is more than the {len(chosen)} regulators that can be perturbed: "
            "raise regulator_share or n_genes"
        )
    return np.sort(np.array(chosen, dtype=np.int64))


def _choose_doubles(
    n_doubles: int, main: np.ndarray, wiring: np.ndarray, rng: np.random.Generator
) -> tuple[Double, ...]:
    pools: dict[str, list[Double]] = {kind: [] for kind in _QUOTA}
    for first, second in combinations(range(main.size), 2):
        how = relation(wiring, int(main[first]), int(main[second]))
        # In a pathway the downstream step is epistatic: what it does does not wait for the upstream one.
        epistatic = -1
        if how == "upstream":
            epistatic = second if wiring[main[first], main[second]] != 0 else first
        pools[KIND_OF_RELATION[how]].append(Double(first, second, how, KIND_OF_RELATION[how], epistatic))
    chosen: list[Double] = []
    rest: list[Double] = []
    used = np.zeros(main.size)
    for kind in ("masking", "synergistic", "buffering", "additive"):
        pool = [pools[kind][i] for i in rng.permutation(len(pools[kind]))]
        for _ in range(min(len(pool), round(_QUOTA[kind] * n_doubles))):
            best = min(range(len(pool)), key=lambda i: used[pool[i].first] + used[pool[i].second])
            pair = pool.pop(best)
            used[[pair.first, pair.second]] += 1
            chosen.append(pair)
        rest.extend(pool)
    order = rng.permutation(len(rest))
    chosen.extend(rest[i] for i in order[: max(0, n_doubles - len(chosen))])
    return tuple(sorted(chosen[:n_doubles], key=lambda d: (d.first, d.second)))
