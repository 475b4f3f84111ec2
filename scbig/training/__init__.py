"""The two training loops, their state, checkpoints and log."""

from scbig.training.autoencoder import Autoencoder, decode_all, encode_all
from scbig.training.flow import Alignment, FlowConfig, FlowTask, evidence, sample_latents, train_flow
from scbig.training.gcae import PretrainConfig, pretrain
from scbig.training.log import MetricsLog, read_metrics
from scbig.training.loop import LoopConfig
from scbig.training.populations import Populations

__all__ = [
    "Alignment",
    "Autoencoder",
    "FlowConfig",
    "FlowTask",
    "LoopConfig",
    "MetricsLog",
    "Populations",
    "PretrainConfig",
    "decode_all",
    "encode_all",
    "evidence",
    "pretrain",
    "read_metrics",
    "sample_latents",
    "train_flow",
]
