"""Networks: architecture only, no training and no data."""

from scbig.nn.condition import ConditionEncoder, ConditionEncoderConfig, Conditions, Encoded
from scbig.nn.gcae import GCAE, GCAEConfig, ModuleLayout
from scbig.nn.velocity import FlowNet, FlowNetConfig

__all__ = [
    "GCAE",
    "ConditionEncoder",
    "ConditionEncoderConfig",
    "Conditions",
    "Encoded",
    "FlowNet",
    "FlowNetConfig",
    "GCAEConfig",
    "ModuleLayout",
]
