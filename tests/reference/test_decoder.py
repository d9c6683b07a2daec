"""The dense oracle itself: causal to the bit, and a table of angles without edges."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import KINDS, VOCAB_SIZE, Kind, random_weights, write_config
from quire.reference.decoder import TABLE_ROWS, logits, rotary_table

REFERENCE = choose_ops("cpu", "reference")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_do_not_see_what_follows(kind: Kind, dtype: str, tmp_path: Path) -> None:
    config = read_model_config(write_config(kind, tmp_path), dtype)  # type: ignore[arg-type]
    weights = random_weights(config, REFERENCE)
    tokens = torch.randint(0, VOCAB_SIZE, (150,), dtype=torch.int32)
    whole = logits(config.decoder, weights, tokens)
    for length in (1, 2, 63, 64, 65, 149):
        assert torch.equal(logits(config.decoder, weights, tokens[:length]), whole[:length])


@pytest.mark.parametrize("half", [8, 24, 64, 128])
def test_angles_do_not_depend_on_length_or_threads(half: int) -> None:
    frequencies = tuple(10000.0 ** (-i / half) for i in range(half))
    whole = rotary_table(frequencies, 1000)
    for num_positions in (1, 63, TABLE_ROWS, 65, 999):
        assert torch.equal(rotary_table(frequencies, num_positions), whole[:num_positions])
    torch.set_num_threads(2)
    assert torch.equal(rotary_table(frequencies, 1000), whole)


def test_angles_are_right() -> None:
    frequencies = (1.0, 0.1, 1e-4, 0.0, *[0.5] * 4)
    table = rotary_table(frequencies, 5000)
    assert table.shape == (5000, 16)
    assert table.dtype == torch.float32
    for position in (0, 1, 4999):
        for i, frequency in enumerate(frequencies):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            assert math.isclose(table[position, i], cos, rel_tol=1e-7, abs_tol=1e-9)
            assert math.isclose(table[position, 8 + i], sin, rel_tol=1e-7, abs_tol=1e-9)


def test_table_is_contiguous() -> None:
    """Kernels take its address."""
    assert rotary_table((1.0,) * 8, 100).is_contiguous()
