"""Which implementation of the tensor operations an engine uses. Imports it only when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .config import Backend, SumsName
from .errors import ConfigError

if TYPE_CHECKING:
    from ..reference.ops import Ops
    from ..reference.sums import Sums


def choose_ops(device: str, backend: Backend) -> Ops:
    """Return the module of operations for a device ("cpu") and a backend.

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
    raise ConfigError(
        f"backend is {backend!r} on device {device!r}: the device must be 'cpu' "
        "and the backend auto, kernels or reference."
    )


def choose_sums(name: SumsName) -> Sums:
    """Return the order in which products of bfloat16 are added: auto is the processor's fastest.

    The same for every backend, so that backends agree on one machine.
    """
    if name != "auto":
        return name
    from ..kernels.cpu.emit import fastest_sums

    return fastest_sums()
