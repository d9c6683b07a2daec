"""Edits of a step's logits as a GPU computes them: equal to the definition bit for bit."""

from __future__ import annotations

import sys
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.device.link import make_link
from quire.fuzz.edit_cases import EditCase, check_edits, edit_cases
from quire.kernels import gpu
from quire.reference.ops import Ops


@settings(max_examples=60, deadline=None)
@given(case=edit_cases, at_once=st.sampled_from((2**24, 1, 40)))
def test_all_rows_at_once_equal_the_definition(device: str, case: EditCase, at_once: int) -> None:
    """In how many turns soever rows are penalized."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["quire.kernels.gpu.edits"], "MAX_ELEMENTS", at_once)
        check_edits(cast(Ops, gpu), make_link(torch.device(device)), case, is_exact=False)
