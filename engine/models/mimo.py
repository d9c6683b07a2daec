"""MiMo: Qwen2, with layers that guess (MTP) beside it."""

from __future__ import annotations

from . import qwen2
from .family import Family

FAMILY = Family("MiMoForCausalLM", qwen2.traits)
