"""Twin of reference.edits.edit_logits, all rows at once. Plain PyTorch, which runs on any device.

Nothing here waits for the device. Histories are read from the table of known tokens, which knows
the newest one even where the host does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.ops import EditRows

MAX_ELEMENTS = 2**22
"""Of a temporary tensor: more rows are penalized in several turns."""
NO_TOKEN = 2**31 - 1


def edit_logits(logits: Tensor, edits: EditRows) -> Tensor:
    """See Ops.edit_logits."""
    out = logits.to(torch.float32, copy=True)
    if len(edits.masked):
        rows = edits.rows[edits.masked]
        out[rows] = out[rows].masked_fill(edits.denied, -torch.inf)
    if len(edits.worded):
        _ban_words(out, edits)
    if len(edits.biased):
        out[edits.rows[edits.biased], edits.bias_tokens] += edits.biases
    at_once = max(1, MAX_ELEMENTS // max(1, edits.longest))
    for first in range(0, len(edits.penalized), at_once):
        _penalize(out, edits, edits.penalized[first : first + at_once])
    if len(edits.banned):
        out[edits.rows[edits.banned], edits.banned_tokens] = -torch.inf
    return out


def _ban_words(x: Tensor, edits: EditRows) -> None:
    """Ban the last token of each word whose other tokens the outputs end with."""
    entries, tokens = edits.worded, edits.words
    before = torch.arange(1 - tokens.shape[1], 0, device=x.device)
    places = edits.lengths[entries][:, None] + before
    tails = edits.known[edits.slots[entries][:, None], places.clamp(min=0)]
    same = (tails == tokens[:, :-1]) & (places >= edits.prompts[entries][:, None])
    comes = (same | (tokens[:, :-1] < 0)).all(1)
    bans = torch.where(comes, -torch.inf, torch.inf)
    index = edits.rows[entries] * x.shape[1] + tokens[:, -1]
    x.view(-1).scatter_reduce_(0, index, bans, "amin")


def _penalize(x: Tensor, edits: EditRows, entries: Tensor) -> None:
    """Penalize some of the rows of x [rows, vocab] by what their histories have.

    Only the tokens of a history are touched. One that comes again is written again, the same.
    """
    rows, lengths, prompts = (
        numbers[entries][:, None] for numbers in (edits.rows, edits.lengths, edits.prompts)
    )
    repetition, frequency, presence = edits.penalties[entries][:, :, None].unbind(1)
    history = edits.known[edits.slots[entries], : edits.longest]
    position = torch.arange(history.shape[1], device=x.device)
    # There is a prompt, so its first token stands for the places behind a history's end.
    tokens = torch.where(position < lengths, history, history[:, :1])
    drawn = history.masked_fill((position < prompts) | (position >= lengths), NO_TOKEN)
    drawn = drawn.sort(1).values
    counts = torch.searchsorted(drawn, tokens, right=True) - torch.searchsorted(drawn, tokens)
    tokens = tokens.long()
    old = x[rows, tokens]
    new = torch.where(old > 0, old / repetition, old * repetition)
    new = new - frequency * counts
    x[rows, tokens] = new - presence * (counts > 0)
