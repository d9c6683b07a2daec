"""Twin of reference.linear: the same functions, for both multiply by oneDNN's packed weights."""

from ...reference.linear import linear, pack_linear, self_test

__all__ = ["linear", "pack_linear", "self_test"]
