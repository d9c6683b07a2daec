"""Which device and which implementation of the tensor operations an engine uses.

Imports an implementation, and torch, only when it is chosen.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, cast

from .config import Backend, DeviceName, SumsName
from .errors import ConfigError

if TYPE_CHECKING:
    from ..reference.ops import Ops
    from ..reference.sums import Sums

logger = logging.getLogger("quire")

Device = Literal["cpu", "cuda"]

LEAST_CAPABILITY = (8, 0)
"""From which on NVIDIA GPUs multiply bfloat16."""


def choose_device(name: DeviceName, backend: Backend = "auto", sums: SumsName = "auto") -> Device:
    """Return the device to compute on.

    auto is the GPU where there is one that can be used, unless another option asks for what only a
    CPU does. Raises ConfigError where cuda is asked for and cannot be had.
    """
    if name == "cpu":
        return "cpu"
    only_cpu = backend == "reference" or sums != "auto"
    if name == "auto" and only_cpu:
        return "cpu"
    reason = why_no_cuda()
    if name == "auto":
        if reason is not None:
            logger.debug("no GPU: %s", reason)
        return "cpu" if reason is not None else "cuda"
    if backend == "reference":
        raise ConfigError(
            "backend is 'reference' and device 'cuda': the reference runs on a CPU. "
            "Give --device cpu, or leave the backend."
        )
    if sums != "auto":
        raise ConfigError(
            f"bfloat16_sums is {sums!r} and device 'cuda': a GPU adds in an order of its own. "
            "Give --device cpu, or leave bfloat16_sums auto."
        )
    if reason is not None:
        raise ConfigError(f"device is 'cuda', but {reason}. Or give --device cpu.")
    return "cuda"


def why_no_cuda() -> str | None:
    """Return why no GPU can be used, and what to do about it; None where one can be used."""
    import torch

    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) was built without CUDA: install one that was "
            "built with it (pytorch.org/get-started)"
        )
    if not torch.cuda.is_available():
        return (
            "PyTorch finds no NVIDIA GPU: nvidia-smi should list one, with a driver for CUDA "
            f"{torch.version.cuda} or later, and CUDA_VISIBLE_DEVICES must not hide it"
        )
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} has compute capability "
            f"{capability[0]}.{capability[1]}, which knows no bfloat16: 8.0 or above is needed "
            "(A100, RTX 30 or later)"
        )
    return None


def choose_ops(device: str, backend: Backend) -> Ops:
    """Return the module of operations for a device ("cpu" or "cuda") and a backend.

    Raises ConfigError for a pair that does not exist. The casts are needed since each module takes
    only its own kind of KV cache; tests compare the signatures.
    """
    match device, backend:
        case "cpu", "auto" | "kernels":
            from ..kernels import cpu

            return cast("Ops", cpu)
        case "cpu", "reference":
            from .. import reference

            return cast("Ops", reference)
        case "cuda", "auto" | "kernels":
            from ..kernels import gpu

            return cast("Ops", gpu)
    raise ConfigError(
        f"backend is {backend!r} on device {device!r}: the device must be 'cpu' or 'cuda', and the "
        "backend auto, kernels or (on a CPU) reference."
    )


def refuse_shape(ops: Ops, head_dim: int) -> str | None:
    """Return why an implementation has no kernel for a model's shape; None where it has."""
    refuse = getattr(ops, "refuse_head_dim", None)
    reason: str | None = None if refuse is None else refuse(head_dim)
    return reason


def most_split_rows(ops: Ops, num_kv_heads: int) -> int:
    """Return the most sequences of one query whose attention an implementation splits: it takes
    memory for the parts. 0 where it splits none."""
    most = getattr(ops, "most_split_rows", None)
    count: int = 0 if most is None else most(num_kv_heads)
    return count


def choose_sums(name: SumsName, device: Device = "cpu") -> Sums:
    """Return the order in which products of bfloat16 are added: auto is the processor's fastest.

    The same for every backend, so that backends agree on one machine. A GPU does not read it.
    """
    if name != "auto":
        return name
    if device == "cuda":
        return "pairs"
    from ..kernels.cpu.emit import fastest_sums

    return fastest_sums()
