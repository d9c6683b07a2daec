"""Edits of the logits before a token is drawn: penalties, biases, words that must not come.

Definition, for one row of logits widened to float32, the prompt and the outputs so far (each
operation one float32 operation, in this order; the log probabilities of the answer are those of the
logits before):

* A token that is not among the allowed ones, or that a grammar does not allow after the outputs:
  -infinity.
* A bad word, a sequence of tokens: where the outputs end with all of it but its last token, that
  one: -infinity.
* Bias: l + bias.
* Repetition: for each token of prompt or outputs, l / penalty if l > 0, else l * penalty.
* Frequency: l - penalty * (how often the token is among the outputs).
* Presence: l - penalty * (1 where it is among them, else 0).
* Thinking: where its budget is spent, 0 for the token that is due, -infinity for all others. A
  thought begins behind the first start marker that no end marker follows (of those in the prompt
  the last); due is what continues the end marker from where the thought's last tokens leave it.
* Processors: what each of some functions of (prompt, outputs, l) makes of them, in order.

Spelled out for one row. `edit_logits` is the operation of all devices, for the rows of a step: all
but the last two, which the engine does. Order and meaning are vLLM's (whose thoughts end with the
whole end marker, whatever they ended with before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .ops import EditRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Most tokens of a thought, and the tokens that begin and end one."""

    budget: int
    start: Sequence[int]
    end: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What one request asks; the defaults ask nothing."""

    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[Sequence[int]] = ()
    next_token_ids: Callable[[Sequence[int]], Sequence[int]] | None = None
    """What a grammar allows after the outputs."""
    thinking: Thinking | None = None
    processors: Sequence[Callable[[list[int], list[int], Tensor], Tensor]] = ()


def edit(logits: Tensor, edits: Edits, prompt: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """Return one row of logits, [vocab] dtype -> float32, edited."""
    x = logits.to(torch.float32, copy=True)
    for ids in (edits.allowed_token_ids, edits.next_token_ids and edits.next_token_ids(outputs)):
        if ids is not None:
            allowed = set(ids)
            x[[token for token in range(len(x)) if token not in allowed]] = -torch.inf
    for *head, last in edits.bad_words:
        if list(outputs[len(outputs) - len(head) :]) == head:
            x[last] = -torch.inf
    for token, bias in edits.logit_bias.items():
        x[token] = x[token] + _number(bias)
    repetition, frequency = _number(edits.repetition_penalty), _number(edits.frequency_penalty)
    for token in {*prompt, *outputs}:
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token in set(outputs):
        x[token] = x[token] - frequency * _number(outputs.count(token))
        x[token] = x[token] - _number(edits.presence_penalty)
    if edits.thinking is not None:
        due = due_token(edits.thinking, prompt, outputs)
        if due is not None:
            x[:] = -torch.inf
            x[due] = 0.0
    for processor in edits.processors:
        x = processor(list(prompt), list(outputs), x)
    return x


def edit_logits(logits: Tensor, edits: EditRows) -> Tensor:
    """See Ops.edit_logits."""
    out = logits.to(torch.float32, copy=True)
    for i, row in enumerate(edits.rows.tolist()):
        history: list[int] = edits.known[edits.slots[i], : edits.lengths[i]].tolist()
        num_prompt = int(edits.prompts[i])
        out[row] = edit(logits[row], _of_row(edits, i), history[:num_prompt], history[num_prompt:])
        out[row, edits.banned_tokens[edits.banned == i]] = -torch.inf
    return out


def _of_row(edits: EditRows, i: int) -> Edits:
    """Return what one row asks."""
    repetition, frequency, presence = edits.penalties[i].tolist()
    denied = edits.denied[edits.masked == i]
    mine = edits.biased == i
    words: list[list[int]] = edits.words[edits.worded == i].tolist()
    return Edits(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=dict(
            zip(edits.bias_tokens[mine].tolist(), edits.biases[mine].tolist(), strict=True)
        ),
        allowed_token_ids=(~denied[0]).nonzero()[:, 0].tolist() if len(denied) else None,
        bad_words=[[token for token in word if token >= 0] for word in words],
    )


def due_token(thinking: Thinking, prompt: Sequence[int], outputs: Sequence[int]) -> int | None:
    """Return the token that must come because a thought's budget is spent, or None."""
    known, end = [*prompt, *outputs], list(thinking.end)
    closed = max(_ends(known, end), default=0)
    opened = [place for place in _ends(known, list(thinking.start)) if place > closed]
    if not opened:
        return None
    begun = max((place for place in opened if place <= len(prompt)), default=opened[0])
    thought = known[begun:]
    if len(thought) < thinking.budget:
        return None
    said = [n for n in range(len(end)) if thought[max(0, len(thought) - n) :] == end[:n]]
    return end[max(said)]


def _ends(known: list[int], marker: list[int]) -> list[int]:
    """Return the places in known behind which a marker has just ended."""
    size = len(marker)
    return [i for i in range(size, len(known) + 1) if known[i - size : i] == marker]


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)
