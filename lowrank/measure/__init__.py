"""Accounting: bytes, operations and seconds of a training step, measured or predicted, and what it ran on."""

from lowrank.measure.device import compute_device, device_facts
from lowrank.measure.exhausted import let_go, ran_out
from lowrank.measure.flops import FlopCounter
from lowrank.measure.memory import PeakMemory, keep_freed_memory, rss_bytes
from lowrank.measure.predict import predict_step
from lowrank.measure.step import Accounting, measure_step, model_loss
from lowrank.measure.storages import counts, optimizer_bytes, saved_tensors, storage_bytes
from lowrank.measure.weights import kept_trunk, trunk_weights, weight_norms

__all__ = [
    "Accounting",
    "FlopCounter",
    "PeakMemory",
    "compute_device",
    "counts",
    "device_facts",
    "keep_freed_memory",
    "kept_trunk",
    "let_go",
    "measure_step",
    "model_loss",
    "optimizer_bytes",
    "predict_step",
    "ran_out",
    "rss_bytes",
    "saved_tensors",
    "storage_bytes",
    "trunk_weights",
    "weight_norms",
]
