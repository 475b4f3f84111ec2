"""What tables of variants tell of a run: the judge's scores, and what it cost."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from scbig import evaluation
from scbig.evaluation.reading import stratum_of_comparison
from scbig.run import Run
from scbig.training import read_metrics

__all__ = ["ALWAYS", "MEASURES", "METRICS", "measure"]

METRICS = ("pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "pds_l2", "e_distance_share")
"""Columns where a table names none: what is shown at the end of a run."""

MEASURES = {
    "explained": "share of the variance of held-out cells that the autoencoder explains",
    "held_out_score": "distance of sampled to held-out cells relative to control's, while training",
    "parameters": "trained numbers of autoencoder and flow",
    "parameters_autoencoder": "trained numbers of the autoencoder",
    "pretrain_seconds": "of stage 1, compilation included",
    "train_seconds": "of stage 2, compilation included",
    "pretrain_ms": "milliseconds per update of stage 1, evaluations included, compilation not",
    "train_ms": "the same of stage 2",
}
"""What can be told of a run beside the judge's metrics."""

ALWAYS = ("explained", "parameters", "pretrain_seconds", "train_seconds")
"""Those told in every table."""

_METHOD = "scBIG"


def measure(run: Run, metrics: Sequence[str]) -> dict[str, float]:
    """The metrics of a finished run by name, those of ``ALWAYS`` last; a metric that the judge left out is not there."""
    names = [*metrics, *(name for name in ALWAYS if name not in metrics)]
    scores = evaluation.load(run.path("evaluation"))
    stratum, known = stratum_of_comparison(scores), set(scores.summary["metric"])
    found = {}
    for name in names:
        if name in MEASURES:
            found[name] = _measured(run, name)
        elif name in known:
            found[name] = float(scores.value(_METHOD, name, stratum))
    return found


def _measured(run: Run, name: str) -> float:
    stages = run.provenance["stages"]
    if name == "explained":
        return max(line["explained"] for line in read_metrics(run.folder, "pretrain"))
    if name == "held_out_score":
        return float(stages["train"]["remarks"]["held_out_score"])
    if name.startswith("parameters"):
        parts = ("gcae",) if name == "parameters_autoencoder" else ("gcae", "flow")
        return float(sum(_size(run.path(f"{part}/params")) for part in parts))
    stage, _, unit = name.partition("_")
    return float(stages[stage]["seconds"]) if unit == "seconds" else _pace(run, stage)


def _size(folder: Path) -> int:
    """How many trained numbers a network on disk has: the autoencoder keeps the means of its data beside them."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(folder.resolve()).item_metadata.tree
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree.get("params", tree)))


def _pace(run: Run, stage: str) -> float:
    """Milliseconds per update between the first evaluation and the last, by the times in TensorBoard's record.

    NaN where there was one evaluation only, or where the training was interrupted.
    """
    lines = [found for file in sorted(run.path(f"tensorboard/{stage}").glob("events.*")) for found in _events(file)]
    steps = [(step, when) for step, when, tag in lines if tag == "loss"]
    if len(steps) < 2 or len(list(run.path(f"tensorboard/{stage}").glob("events.*"))) > 1:
        return float("nan")
    (first, begun), (last, ended) = steps[0], steps[-1]
    return 1000.0 * (ended - begun) / (last - first)


def _events(file: Path) -> Iterator[tuple[int, float, str]]:
    """Step, time and name of every number in a file of TensorBoard: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = file.read_bytes(), 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            yield event.step, event.wall_time, value.tag
        place += 16 + length
