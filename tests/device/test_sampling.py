"""Sampling rows by slot, and what the sampler makes of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from quire.engine.device.link import HostLink
from quire.engine.device.sampler import Drawn, Source, Told, draw
from quire.engine.device.sampling_rows import (
    NO_LOGPROBS,
    NUM_PARAMETERS,
    SamplingTable,
    StepExtras,
)
from quire.engine.opset import choose_ops
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted
from quire.reference.ops import SamplingRows

VOCAB_SIZE = 32
REFERENCE = choose_ops("cpu", "reference")


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def admit(
    table: SamplingTable,
    slot: int,
    *,
    num_prompt: int = 4,
    stops: tuple[int, ...] = (),
    **params: object,
) -> None:
    seed = params.get("seed", 0)
    assert isinstance(seed, int)
    sampling = SamplingParams(**(params | {"max_tokens": None}))  # type: ignore[arg-type]
    tokens = np.zeros(num_prompt, dtype=np.int32)
    table.admit(Admitted(slot, tokens, num_prompt, sampling, seed % 2**64, stops))


def fill(
    table: SamplingTable, slots: np.ndarray, positions: np.ndarray
) -> tuple[SamplingRows, StepExtras]:
    """Ask for rows, into arrays with room for one more, which must stay as it is."""
    size = len(slots)
    parameters = np.full((NUM_PARAMETERS, size + 1), 77, dtype=np.int32)
    seeds = np.full(size + 1, 77, dtype=np.int64)
    extras = table.fill(slots, positions, parameters, seeds)
    assert (parameters[:, size] == 77).all() and seeds[size] == 77
    words = torch.from_numpy(parameters[:, :size].copy())
    return SamplingRows(
        temperature=words[0].view(torch.float32),
        top_k=words[1],
        top_p=words[2].view(torch.float32),
        min_p=words[3].view(torch.float32),
        seeds=torch.from_numpy(seeds[:size]),
        indices=words[4],
    ), extras


def draw_from(table: SamplingTable, logits: torch.Tensor, slots: np.ndarray) -> Drawn:
    """Draw the first token of slots with prompts of four."""
    rows, extras = fill(table, slots, ints(*[4] * len(slots)))
    told = None
    if extras.num_logprobs != NO_LOGPROBS:
        asked = None if extras.told is None else torch.from_numpy(extras.told)
        told = Told(asked, extras.num_logprobs)
    edits = extras.edits

    def edit(given: torch.Tensor) -> Source:
        assert edits is not None
        known = torch.zeros((4, 8), dtype=torch.int32)
        return Source(given, table.edits.rows_of(known, edits, extras.forbidden))

    return draw(REFERENCE, logits, rows, told, None if edits is None else edit)


def test_rows_are_the_parameters_of_their_slots() -> None:
    table = SamplingTable(REFERENCE, HostLink(), 4, VOCAB_SIZE)
    admit(table, 3, temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, seed=2**64 - 1)
    admit(table, 1, num_prompt=2, temperature=0.0, top_k=7, seed=2**63)
    rows, (forbidden, num_logprobs, *_) = fill(table, ints(1, 3), ints(2, 9))
    assert rows.temperature.tolist() == [0.0, 0.5]
    assert rows.top_k.tolist() == [7, 0]
    assert rows.top_p.tolist() == [1.0, torch.tensor(0.9).item()]
    assert rows.min_p.tolist() == [0.0, torch.tensor(0.1).item()]
    assert rows.seeds.tolist() == [-(2**63), -1]
    assert rows.indices.tolist() == [0, 5]
    assert [row.dtype for row in rows] == [
        torch.float32,
        torch.int32,
        torch.float32,
        torch.float32,
        torch.int64,
        torch.int32,
    ]
    assert forbidden is None
    assert num_logprobs == NO_LOGPROBS


def test_a_slot_forgets_its_last_sequence() -> None:
    table = SamplingTable(REFERENCE, HostLink(), 1, VOCAB_SIZE)
    admit(table, 0, logprobs=5, min_tokens=9, stops=(1,), top_k=3, seed=8)
    admit(table, 0)
    rows, (forbidden, num_logprobs, *_) = fill(table, ints(0), ints(4))
    assert (forbidden, num_logprobs) == (None, NO_LOGPROBS)
    assert (rows.top_k.item(), rows.seeds.item()) == (0, 0)


def test_most_logprobs_of_the_step_count() -> None:
    table = SamplingTable(REFERENCE, HostLink(), 3, VOCAB_SIZE)
    admit(table, 0)
    admit(table, 1, logprobs=0)
    admit(table, 2, logprobs=4)
    asked = [
        fill(table, slots, ints(*[5] * len(slots)))[1].num_logprobs
        for slots in (ints(0), ints(0, 1), ints(2, 1))
    ]
    assert asked == [NO_LOGPROBS, 0, 4]


def test_stops_are_forbidden_before_min_tokens_only() -> None:
    table = SamplingTable(REFERENCE, HostLink(), 3, VOCAB_SIZE)
    admit(table, 0, min_tokens=2, stops=(3, 31, VOCAB_SIZE))
    admit(table, 1, stops=(5,))
    admit(table, 2, min_tokens=1)
    forbidden = fill(table, ints(1, 0, 2), ints(4, 5, 4))[1].forbidden
    assert forbidden is not None
    assert forbidden.rows.tolist() == [1, 1]
    assert forbidden.tokens.tolist() == [3, 31]
    assert fill(table, ints(1, 0, 2), ints(5, 6, 5))[1].forbidden is None


def test_forbidden_tokens_are_not_drawn_but_counted_in_logprobs() -> None:
    """Log probabilities of the rows that asked, wherever they are."""
    table = SamplingTable(REFERENCE, HostLink(), 3, VOCAB_SIZE)
    admit(table, 0, temperature=0.0, min_tokens=1, stops=(7,), logprobs=2)
    admit(table, 1, temperature=0.0, stops=(7,), logprobs=0)
    admit(table, 2, temperature=0.0)
    logits = torch.arange(VOCAB_SIZE).repeat(3, 1) / 8
    logits[:, 7] = 9.0
    wanted = logits.double().log_softmax(-1)[0]
    tokens, rows, _ = draw_from(table, logits.clone(), ints(0, 2, 1))
    assert tokens.tolist() == [31, 7, 7]
    assert rows is not None
    assert rows.ranks.tolist() == [2, 0, 1]
    assert rows.top_ids.tolist() == [[7, 31], [0, 0], [7, 31]]
    assert math.isclose(rows.sampled[0], wanted[31], abs_tol=1e-5)
    admit(table, 0, temperature=0.0, min_tokens=1, stops=(7,))
    admit(table, 1, temperature=0.0, stops=(7,))
    tokens, rows, _ = draw_from(table, logits[:2].clone(), ints(0, 1))
    assert (tokens.tolist(), rows) == ([31, 7], None)


def test_a_row_that_is_not_finite_keeps_the_others() -> None:
    table = SamplingTable(REFERENCE, HostLink(), 2, VOCAB_SIZE)
    admit(table, 0, temperature=0.0, logprobs=1)
    admit(table, 1, temperature=0.0, logprobs=1)
    logits = torch.arange(VOCAB_SIZE).repeat(2, 1) / 8
    logits[0, 3] = torch.nan
    tokens, rows, _ = draw_from(table, logits, ints(0, 1))
    assert tokens.tolist() == [-1, 31]
    assert rows is not None
    assert rows.top_ids[1].tolist() == [31]
