"""Every setting of a run, with its default; the files in ``configs/`` change what an experiment needs changed."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from scbig.errors import InputError, some

__all__ = ["ablation", "as_json", "checked", "default", "demo", "execute_file", "load", "override", "read_json"]


def default() -> ConfigDict:
    """The defaults: the method of the paper at a size for one small screen. Empty strings mean "not given"."""
    c = ConfigDict()
    c.name = "scbig"
    c.seed = 0
    c.device = ""  # "cpu" or "gpu": refuse to run elsewhere; "" takes what JAX finds
    c.n_devices = 0  # that training is spread over; 0: all there are
    c.precision = "auto"  # of products in training: float32 | bfloat16; auto: bfloat16 where a GPU does it
    c.compiled = ""  # folder of compiled programs; "" one in the user's cache, "none" keeps none
    c.holdout_fraction = 0.1  # of the training cells of each condition, kept back for stopping

    c.data = ConfigDict()
    c.data.path = ""  # .h5ad or .zarr
    c.data.condition = ""  # obs column of the perturbation; "" looks for it and says what it found
    c.data.separator = ""  # between the parts of a combination
    c.data.control = ""  # label of the controls
    c.data.context = ""  # obs column of the cell line or cell type
    c.data.batch = ""
    c.data.dose = ""
    c.data.size_factor = ""  # obs column of the depth, where the file holds a part of the genes
    c.data.layer = ""  # to read instead of X
    c.data.normalized = False  # the file holds log-normalised values, not counts
    c.data.make_unique = False
    c.data.targets = "genes"  # "none": conditions are drugs or stimuli, not genes
    c.data.allow_missing_targets = False  # perturbed genes need not be measured
    c.data.min_cells = 1  # per condition
    c.data.min_genes = 0  # per cell; the paper: 1,000
    c.data.min_cells_per_gene = 0  # the paper: 50
    c.data.n_top_genes = 2000  # highly variable, chosen on training cells; 0 keeps all
    c.data.target_sum = "median"  # or a number such as "1e4"
    c.data.knockdown = ""  # "down" or "up": drop cells whose target did not move that way
    c.data.knockdown_min_change = 0.0  # by at least so much log-expression
    c.data.backend = "auto"  # auto | memory | dask: by blocks on Dask workers
    c.data.memory_gb = 4.0  # "auto" goes by blocks where the matrices would take more

    c.split = ConfigDict()
    c.split.rule = (
        "additive"  # additive | holdout | simulation | simulation_single | scdfm | random | context | cells | file
    )
    c.split.name = ""
    c.split.seed = 0
    c.split.path = ""  # rule "file": a table condition, part[, stratum]
    c.split.test_fraction = -1.0  # negative: what the rule says
    c.split.val_fraction = -1.0
    c.split.n_test = 0  # conditions; 0: by fraction
    c.split.n_val = 0
    c.split.held_out_context = ""

    c.priors = ConfigDict()
    c.priors.dir = ""  # the folder of the files named below
    c.priors.aliases = ""  # alias to approved symbol
    c.priors.gene_ids = ""  # approved symbols, so that an alias is not taken for another gene
    c.priors.semantic = ()  # embeddings for clustering genes
    c.priors.condition = ()  # embeddings of perturbations; "identity" is a one-hot of the training perturbations
    c.priors.ppi = ""
    c.priors.ppi_info = ""  # STRING's protein.info file, for its protein.links
    c.priors.ppi_min_score = 700
    c.priors.pathways = ""
    c.priors.gene_sets = ()  # further collections for the audit of the modules
    c.priors.min_pathway = 10  # genes in the panel
    c.priors.max_pathway = 500

    c.modules = ConfigDict()
    c.modules.n_modules = 32
    c.modules.method = "grc"  # grc | balanced_kmeans | kmeans | random | soft: genes in two modules
    c.modules.w_sem = 1.0
    c.modules.w_ppi = 1.0
    c.modules.standardize = True  # both cost terms to equal spread; False is the authors' behaviour
    c.modules.epsilon = 0.05  # of the cost's spread
    c.modules.max_rounds = 20
    c.modules.rounding = "auto"  # auto | exact | greedy
    c.modules.response_weight = 0.0  # share of training responses in what genes are clustered by; the authors' 0.3

    c.gcae = ConfigDict()  # scbig.nn.GCAEConfig
    c.gcae.width = 256
    c.gcae.depth = 3
    c.gcae.heads = 8
    c.gcae.inducing = 8
    c.gcae.latent = 50
    c.gcae.mlp_ratio = 2
    c.gcae.dropout = 0.1
    c.gcae.encoder = "induced"
    c.gcae.decoder = "induced"
    c.gcae.readout = "mean"  # mean | attention | pma | concat
    c.gcae.seeds = 4  # queries of the readout pma
    c.gcae.shared_projection = False
    c.gcae.likelihood = "gaussian"  # of expression | negative_binomial: of counts, as which cells are then drawn

    c.pretrain = ConfigDict()  # scbig.training.PretrainConfig
    c.pretrain.epochs = 100
    c.pretrain.batch = 256
    c.pretrain.learning_rate = 1e-4
    c.pretrain.schedule = "cosine"
    c.pretrain.warmup = 200
    c.pretrain.clip = 1.0
    c.pretrain.ema = 0.995
    c.pretrain.patience = 10
    c.pretrain.evaluate_epochs = 1
    c.pretrain.checkpoint_every = 5
    c.pretrain.max_held_out = 2048
    c.pretrain.feed = "auto"  # device: all training cells there | stream: from disk | auto: device if they fit
    c.pretrain.device_gb = 0.0  # of dense cells that auto keeps there; 0: 4 on a CPU, half of an accelerator's memory
    c.pretrain.buffer = 16384  # cells shuffled together when streaming

    c.anchor = ConfigDict()  # the predictor of the mean effect that the flow starts from
    c.anchor.method = "auto"  # a baseline; "auto": the one that suits what is known of each condition; "": none
    c.anchor.sources = ()  # embeddings that it reads; () those of priors.condition
    c.anchor.folds = 5  # the flow is trained on what the anchor says of conditions left out of it
    c.anchor.pool = 256  # controls moved for each training condition
    c.anchor.move = "thin"  # how cells are moved by the effect: thin (genes are lost too) | scale | shift
    c.anchor.gate = (
        "auto"  # share of what the flow adds that is kept; auto: as proved on validation conditions | a number
    )

    c.condition = ConfigDict()  # scbig.nn.ConditionEncoderConfig
    c.condition.width = 256
    c.condition.fusion = "mean"  # of the sources that know a perturbation: mean | attention
    c.condition.kernel = False  # a residual path from the training perturbations that lie near by in the embeddings
    c.condition.source_dropout = 0.1
    c.condition.null_dropout = 0.0  # > 0 to allow guidance when sampling

    c.velocity = ConfigDict()  # scbig.nn.FlowNetConfig
    c.velocity.width = 1024
    c.velocity.depth = 2
    c.velocity.frequencies = 32
    c.velocity.dropout = 0.1
    c.velocity.interaction = False  # a departure of the shift from the sum for several perturbations; needs many pairs

    c.flow = ConfigDict()  # scbig.training.FlowConfig, and match_batch
    c.flow.match_batch = False  # controls from the batch of each perturbed cell
    c.flow.steps = 5000
    c.flow.conditions = 32
    c.flow.cells = 32
    c.flow.learning_rate = 3e-4
    c.flow.schedule = "cosine"
    c.flow.warmup = 200
    c.flow.clip = 1.0
    c.flow.ema = 0.999
    c.flow.sigma = 0.05
    c.flow.time = "uniform"
    c.flow.times = 4  # different times among a condition's cells in a step; 0: one for each cell
    c.flow.coupling = "sinkhorn"
    c.flow.epsilon = 0.05
    c.flow.shift = 1.0  # weight of the regression that fits the additive shift
    c.flow.shift_steps = 500  # updates of that regression alone, before the flow starts
    c.flow.lambda_corr = 0.1
    c.flow.lambda_path = 0.1
    c.flow.lambda_gene = 0.0  # of the mean effect, genes that the condition moves counting more as training goes on
    c.flow.align_conditions = 1
    c.flow.align_cells = 32
    c.flow.align_every = 2  # steps from one evaluation of the alignment losses to the next
    c.flow.solver = "heun"
    c.flow.solver_steps = 10
    c.flow.residual = True  # cells keep what the decoder cannot tell of the control cell they started from
    c.flow.evaluate_every = 250
    c.flow.chunk = 50
    c.flow.patience = 8
    c.flow.checkpoint_every = 2
    c.flow.watch_conditions = 32  # training conditions evaluated while training
    c.flow.watch_cells = 128  # held-out cells of each

    c.sample = ConfigDict()
    c.sample.n_cells = 500  # per condition, in the stage of the run
    c.sample.guidance = 1.0
    c.sample.clip = True  # decoded log-expression below zero becomes zero
    c.sample.max_controls = 20000  # control cells that populations start from, at most; more are thinned at random

    c.evaluation = ConfigDict()
    c.evaluation.n_cells = 500
    c.evaluation.baselines = ("control", "mean", "additive", "low_rank", "linear", "knn", "kernel_ridge")
    c.evaluation.ceiling_draws = 5  # random halves of the real cells; 0 leaves the ceiling out
    c.evaluation.embedding = ""  # of the linear baseline, one of priors.condition; "" uses PCA factors
    return c


def load(path: str) -> ConfigDict:
    """The configuration that the Python file at ``path`` returns from ``get_config()``.

    Raises:
        InputError: where the file is absent, has no ``get_config``, or sets what is not a setting.
    """
    return checked(execute_file(path), path)


def checked(module: ModuleType, path: str) -> ConfigDict:
    """What ``get_config()`` of an executed file returns.

    Raises:
        InputError: as :func:`load`, which names the file ``path``.
    """
    if not hasattr(module, "get_config"):
        raise InputError(f"{path} has no function get_config() that returns the configuration")
    config = module.get_config()
    known, found = dict(_flat(default())), dict(_flat(config))
    for name in found:
        if name not in known:
            raise InputError(f"{path} sets {name}: {_no_setting(name, known)}")
    if absent := [name for name in known if name not in found]:
        raise InputError(f"{path} lacks {some(absent)}; begin with scbig.config.default()")
    return config


def execute_file(path: str) -> ModuleType:
    """What the Python file at ``path`` defines.

    Raises:
        InputError: where it is absent or is no Python.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no configuration file {path}; see the folder configs/")
    spec = importlib.util.spec_from_file_location(f"scbig_config_{file.stem}", file)
    if spec is None:
        raise InputError(f"{path} is no Python file; see the folder configs/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as problem:
        raise InputError(f"{path}, line {problem.lineno}: {problem.msg}") from problem
    return module


def _no_setting(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"no setting {name}" + (f"; did you mean {near[0]}?" if near else "")


def override(config: ConfigDict, settings: list[str]) -> ConfigDict:
    """Applies ``["flow.steps=100", …]``; values are read as the type of the field that they replace.

    Raises:
        InputError: naming a field that does not exist, with the nearest that does, or a value of another type.
    """
    config = config.copy_and_resolve_references()
    known = dict(_flat(config))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--config.{setting} has no value; write --config.{setting}=VALUE")
        if name not in known:
            raise InputError(_no_setting(name, known))
        group, _, field = name.rpartition(".")
        owner = config[group] if "." not in group and group else config
        owner[field] = _read(name, text, known[name])
    return config


def _flat(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in config.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(prefix + name, value)]
    return found


def _read(name: str, text: str, old: Any) -> Any:
    """A value from the command line, of the type of the one it replaces."""
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        return tuple(part for part in text.strip("()").replace("'", "").replace(" ", "").split(",") if part)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not type(old):
        raise InputError(f"--config.{name}={text}: {type(old).__name__} expected, such as {old!r}")
    return value


def as_json(config: ConfigDict) -> str:
    """The resolved configuration, to be kept with a run."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read_json(path: Path) -> ConfigDict:
    """A configuration that was kept with a run; fields added since take their defaults.

    Raises:
        InputError: where the file is damaged.
    """
    config = default()
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"{path} is damaged ({problem}); restore it or give --config FILE") from problem

    def update(into, values):
        for name, value in values.items():
            if isinstance(value, dict):
                if name in into:
                    update(into[name], value)
            elif name in into:
                into[name] = tuple(value) if isinstance(value, list) else value

    update(config, stored)
    return config


def demo(workdir: str | Path) -> ConfigDict:
    """The settings of ``scbig demo``: the simulated screen in ``workdir/simulated`` and a small, fast model."""
    c = default()
    c.name = "demo"
    c.data.path = str(Path(workdir, "simulated", "screen.h5ad"))
    c.data.batch = "batch"
    c.data.context = "context"
    c.data.n_top_genes = 0
    c.split.rule = "additive"
    c.split.n_test = 10
    c.split.n_val = 4
    c.priors.dir = str(Path(workdir, "simulated", "priors"))
    c.priors.semantic = ("semantic.npz",)
    c.priors.condition = ("semantic.npz", "noisy.npz", "identity")
    c.priors.ppi = "ppi.tsv.gz"
    c.priors.pathways = "pathways.gmt"
    c.modules.n_modules = 16
    c.gcae.width = 64
    c.gcae.depth = 2
    c.gcae.heads = 4
    c.gcae.latent = 32
    c.gcae.readout = "concat"
    c.gcae.dropout = 0.0
    c.pretrain.epochs = 40
    c.pretrain.learning_rate = 2e-3
    c.velocity.width = 256
    c.condition.width = 128
    c.flow.steps = 1500
    c.flow.learning_rate = 5e-4
    c.flow.match_batch = True
    return c


def ablation() -> ConfigDict:
    """The settings that tables of variants start from: those of the demo, judged in short and without the anchor.

    The screen is left open: `scbig ablate` simulates one for each seed. The anchor is off because most of the mean effect
    is its own, and gates hide what is left of the settings of stage 2.
    """
    c = demo(".")
    c.name = "ablation"
    c.data.path, c.priors.dir = "", ""
    c.anchor.method = ""
    c.evaluation.baselines = ("control", "additive")
    c.evaluation.ceiling_draws = 0
    return c
