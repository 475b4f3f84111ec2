"""PertAdapt's two ideas, one at a time: the perturbation adapter, its mask by gene similarity, and the adaptive loss.

Command:  python -m benchmarks.adapter --config configs/ablations/pertadapt.py --shared DIR
Tests:    on measured effects (Norman 2019: unseen singles and pairs; Replogle 2022: unseen singles, one fold), whether
          the adapter adds to the same network without it, whether the mask by Gene Ontology does better than none and
          than as many random neighbours, and whether weighing genes by their differential expression does better than
          the mean square. The variants are `VARIANTS` below, options of the baseline `adapter`.
Result:   benchmarks/results/adapter.md, Norman alone (`--only Norman`, some 25 minutes on two busy cores). The mask does no
          better than a random one. On pairs the loss and, less so, the adapter raise Pearson over the 20 strongest genes
          (0.719; 0.660 with mean square; 0.684 without adapter), and the loss costs it over all (0.606; 0.667).
In cells: `scbig run --config configs/ablations/pertadapt.py --workdir runs/pertadapt` runs the simulated screen of
          `scbig demo` with the adaptive loss among the alignment losses of stage 2 (`flow.lambda_gene`).
"""

from scbig import config

VARIANTS = {
    "full": {},
    "random mask": {"mask": "random"},
    "no mask": {"mask": "none"},
    "no adapter": {"adapter": False},
    "mean square": {"loss": "mse"},
    "neither": {"adapter": False, "loss": "mse"},
}
"""Options of ``scbig.baselines.adapter.fit`` by variant; the first is the model, the others lack one thing or two."""


def get_config():
    """The demo with the adaptive loss in stage 2."""
    c = config.demo("runs/demo")
    c.name = "pertadapt"
    c.flow.lambda_gene = 0.1
    return c
