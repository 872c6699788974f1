"""Capacity and hardware in the orchestrator's terms: the registration message.

Bit *n* of the bitstring is bit n % 64 of word n // 64 (go-livepeer, core/capabilities.go).
"""

from collections.abc import Mapping, Sequence

from cluster.ai_models import ModelKey
from cluster.capacity import Capacity
from cluster.protocol import lp_rpc_pb2 as pb
from deployments.hardware import GPU
from deployments.registry import PIPELINES

DEFAULT_BITS = (*range(13), 14, 26)
"""What a Go worker advertises beside its AI capabilities (measured: 0x4005fff)."""


def capabilities(capacity: Capacity, *, version: str) -> pb.Capabilities:
    """Returns what to advertise.

    Args:
        capacity: slots per model.
        version: ours in the orchestrator's eyes; it turns away workers older than itself.
    """
    ai_bits = {PIPELINES[key.pipeline].capability for key in capacity.models}
    bits = sorted({*DEFAULT_BITS, *ai_bits})
    words = [0] * (max(bits) // 64 + 1)
    for bit in bits:
        words[bit // 64] |= 1 << (bit % 64)
    message = pb.Capabilities(bitstring=words, capacities=dict.fromkeys(bits, 1), version=version)
    per_capability = message.constraints.PerCapability
    for key, model in capacity.models.items():
        constraint = per_capability[PIPELINES[key.pipeline].capability].models[key.model_id]
        constraint.warm = model.warm
        constraint.capacity = model.slots
        constraint.runnerVersion = model.runner_version
    return message


def hardware(gpus: Mapping[ModelKey, Sequence[GPU]]) -> list[pb.HardwareInformation]:
    """Returns one entry per model that runs on GPUs."""
    return [
        pb.HardwareInformation(
            pipeline=key.pipeline,
            model_id=key.model_id,
            gpu_info={
                str(index): pb.GPUComputeInfo(
                    id=gpu.id,
                    name=gpu.name,
                    major=gpu.major,
                    minor=gpu.minor,
                    memory_free=gpu.memory_free_bytes,
                    memory_total=gpu.memory_total_bytes,
                )
                for index, gpu in enumerate(found)
            },
        )
        for key, found in gpus.items()
        if found
    ]
