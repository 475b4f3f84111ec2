"""Settings of the simulator, and the refusal of those that cannot be simulated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from scbig.errors import InputError

__all__ = ["SimConfig"]


@dataclass(frozen=True)
class SimConfig:
    """What to simulate; log-rates are natural logarithms.

    Attributes:
        n_cells, n_genes, n_modules: sizes; modules are balanced.
        n_singles: perturbed genes, each also a condition of its own.
        n_doubles: pairs of them.
        control_share: share of cells that are controls.
        n_batches: batches; every condition is in every batch.
        n_contexts: 1, or 2 for two cell lines with other baselines and partly other responses.
        seed: the only source of randomness.
        direction: ``activation`` or ``knockdown`` of the perturbed genes.
        depth, depth_sigma: mean of a cell's UMIs (0 means 2.5 per gene) and its log-normal spread.
        baseline_sigma: spread of genes' log-rates.
        dispersion: median of the genes' α (variance = mean + α mean²).
        batch_sigma: spread of the genes' shifts by batch.
        module_noise: spread of module activities between cells of one condition.
        cycle_amplitude: swing of the two cell-cycle modules.
        response_sigma: log-normal spread of a perturbation's strength between cells.
        escape: lowest and highest share of cells in which a perturbation fails.
        weak_share: share of perturbations with a quarter of the usual strength.
        regulator_share: share of a module's genes that are its regulators.
        synergy: cooperative impulse of synergistic pairs, relative to their direct actions.
        buffering: share of the joint effect that buffering pairs lose.
        embedding_dim: length of embedding vectors.
        semantic_noise, noisy_noise: length of the embeddings' noise relative to their signal.
        noisy_missing, ppi_missing: share of genes without a ``noisy`` vector, and absent from the network.
        ppi_density: share of the network's gene pairs that are edges with a score above 700.
        ppi_within: share of those edges within modules.
        pathway_noise: chance members per true member of a pathway.
        truth_cells: stratified draws behind the noiseless means.
    """

    n_cells: int = 5000
    n_genes: int = 400
    n_modules: int = 16
    n_singles: int = 24
    n_doubles: int = 30
    control_share: float = 0.12
    n_batches: int = 2
    n_contexts: int = 1
    seed: int = 0
    direction: str = "activation"
    depth: float = 0.0
    depth_sigma: float = 0.35
    baseline_sigma: float = 1.1
    dispersion: float = 0.2
    batch_sigma: float = 0.1
    module_noise: float = 0.25
    cycle_amplitude: float = 0.5
    response_sigma: float = 0.3
    escape: tuple[float, float] = (0.05, 0.3)
    weak_share: float = 0.2
    regulator_share: float = 0.16
    synergy: float = 1.5
    buffering: float = 0.5
    embedding_dim: int = 64
    semantic_noise: float = 0.9
    noisy_noise: float = 2.0
    noisy_missing: float = 0.15
    ppi_density: float = 0.01
    ppi_within: float = 0.7
    ppi_missing: float = 0.05
    pathway_noise: float = 0.15
    truth_cells: int = 1024

    def __post_init__(self) -> None:
        """Fills the default depth and refuses settings that cannot be simulated."""
        if self.depth == 0:
            object.__setattr__(self, "depth", 2.5 * self.n_genes)
        object.__setattr__(self, "escape", tuple(float(x) for x in self.escape))
        _check(self)

    @classmethod
    def demo(cls, seed: int = 0) -> SimConfig:
        """A screen that takes a second: 5,000 cells × 400 genes, 24 singles, 30 doubles."""
        return cls(seed=seed)

    @classmethod
    def benchmark(cls, seed: int = 0) -> SimConfig:
        """20,000 cells × 1,000 genes in 32 modules, 60 singles, 100 doubles, two batches."""
        return cls(n_cells=20_000, n_genes=1000, n_modules=32, n_singles=60, n_doubles=100, seed=seed)


def _check(config: SimConfig) -> None:
    def refuse(problem: str) -> None:
        raise InputError(f"simulation settings: {problem}")

    shares = ("control_share", "weak_share", "regulator_share", "buffering", "ppi_within", "pathway_noise")
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            refuse(f"{name}={getattr(config, name)} is not between 0 and 1")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name.endswith(("sigma", "noise", "amplitude", "synergy")) and value < 0:
            refuse(f"{field.name}={value} is negative")
    for name in ("noisy_missing", "ppi_missing"):
        if not 0 <= getattr(config, name) <= 0.9:
            refuse(f"{name}={getattr(config, name)} is not between 0 and 0.9")
    if config.direction not in ("activation", "knockdown"):
        refuse(f"direction={config.direction!r} is neither 'activation' nor 'knockdown'")
    if config.n_contexts not in (1, 2):
        refuse(f"n_contexts={config.n_contexts}: 1 or 2 contexts can be simulated")
    if config.n_batches < 1 or config.n_singles < 1 or config.n_doubles < 0:
        refuse("n_batches and n_singles must be at least 1, n_doubles at least 0")
    if config.truth_cells < 2 or config.embedding_dim < 2:
        refuse("truth_cells and embedding_dim must be at least 2")
    if round(config.control_share * config.n_cells) < 2 * config.n_contexts:
        refuse(f"control_share={config.control_share} of {config.n_cells} cells leaves too few controls")
    if config.n_modules < 3 or config.n_genes < 4 * config.n_modules:
        refuse(f"{config.n_genes} genes in {config.n_modules} modules: needs at least 3 modules of 4 genes")
    if config.n_doubles > config.n_singles * (config.n_singles - 1) // 2:
        refuse(f"n_doubles={config.n_doubles} is more than {config.n_singles} perturbed genes have pairs")
    if not 0 <= config.escape[0] <= config.escape[1] < 1:
        refuse(f"escape={config.escape} must be two shares, the lower first, below 1")
    if config.depth <= 0 or config.dispersion <= 0 or not 0 < config.ppi_density < 0.2:
        refuse("depth and dispersion must be positive, ppi_density between 0 and 0.2")
    n_conditions = config.n_singles + config.n_doubles
    if config.n_cells * (1 - config.control_share) < 4 * config.n_contexts * n_conditions:
        refuse(f"n_cells={config.n_cells} is fewer than 4 for each of {n_conditions} conditions per context")
