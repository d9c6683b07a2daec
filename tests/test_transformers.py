"""Greedy tokens and beams equal those of transformers, however the engine is made to work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from quire import LLM, BeamSearchParams, SamplingParams
from quire.fuzz.checkpoints import KINDS, VOCAB_SIZE, make_checkpoint
from quire.fuzz.engine_runs import Asked, make_requests, run
from torch import Tensor

MAX_TOKENS = 12
LOGPROB_TOLERANCE = 1e-4

FEW = {"max_model_len": 216, "num_kv_blocks": 216}

WAYS: dict[str, dict[str, Any]] = {
    "alone, blocks of 16": {"alone": True, "block_size": 16},
    "few blocks of 1": {"block_size": 1, **FEW},
    "few blocks of 1, chunks, no cache": {
        "block_size": 1,
        **FEW,
        "max_num_batched_tokens": 19,
        "enable_prefix_caching": False,
    },
    "blocks of 8, chunks, overlap 2": {
        "block_size": 8,
        "max_num_batched_tokens": 50,
        "max_num_seqs": 3,
        "overlap": 2,
    },
    "few blocks of 16, no cache": {
        "block_size": 16,
        "max_model_len": 224,
        "num_kv_blocks": 14,
        "enable_prefix_caching": False,
    },
}


class Theirs(NamedTuple):
    """What transformers gives; log probabilities in float64."""

    tokens: list[int]
    logprobs: list[float]
    prompt: Tensor
    """[prompt, vocab] of what follows each token of the prompt."""


def ask_transformers(path: Path, asked: Asked) -> Theirs:
    """Generate greedily with transformers; return the tokens and log probabilities."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = torch.tensor([asked.prompt])
    with torch.inference_mode():
        given = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=MAX_TOKENS,
            max_new_tokens=MAX_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        of_prompt = model(prompt).logits[0].double()
    tokens = given.sequences[0, prompt.shape[1] :].tolist()
    logprobs = torch.log_softmax(torch.cat(given.logits).double(), -1)
    drawn = [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)]
    return Theirs(tokens, drawn, torch.log_softmax(of_prompt, -1))


@pytest.mark.parametrize("family", KINDS)
def test_greedy_tokens_and_logprobs_equal_transformers(family: Any, tmp_path: Path) -> None:
    # Without an end-of-sequence id transformers masks nothing to reach min_new_tokens.
    path = make_checkpoint(family, tmp_path, eos_token_id=None)
    asked = make_requests(VOCAB_SIZE, seed=3, max_tokens=MAX_TOKENS, sampled=False)
    expected = [ask_transformers(path, one) for one in asked]
    for name, options in WAYS.items():
        outcome = run(path, asked, dtype="float32", num_threads=1, **options)
        if name.startswith("few blocks of 1"):
            assert outcome.stats.num_preemptions > 0, name
        for one, theirs, answer in zip(asked, expected, outcome.answers, strict=True):
            where = name, len(one.prompt)
            assert list(answer.token_ids) == theirs.tokens, where
            assert answer.sampled == pytest.approx(theirs.logprobs, abs=LOGPROB_TOLERANCE), where
            assert (answer.prompt is None) == (one.params.prompt_logprobs is None), where
            for entries, row in zip(answer.prompt or (), theirs.prompt, strict=False):
                wanted = [float(row[token]) for token, _, _ in entries]
                given = [logprob for _, logprob, _ in entries]
                assert given == pytest.approx(wanted, abs=LOGPROB_TOLERANCE), where


BEAM_EOS = tuple(range(0, VOCAB_SIZE, 5))


def search_transformers(
    path: Path, prompt: list[int], *, width: int, eos: tuple[int, ...]
) -> list[tuple[list[int], float]]:
    """Search with transformers, scores not divided by lengths; return answers and scores."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = list(eos) or None
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        given = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=MAX_TOKENS,
            length_penalty=0.0,
            early_stopping="never",
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    answers = given.sequences[:, len(prompt) :].tolist()
    return list(zip(answers, given.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_beams_equal_transformers(kind: Any, tmp_path: Path) -> None:
    """Where nothing ends a sequence: all answers are as long, so lengths and ends, which the two
    count differently (we the prompt too, they only ends among the first beams), play no part."""
    path = make_checkpoint(kind, tmp_path, seed=5)
    options: dict[str, Any] = {"num_threads": 1, "dtype": "float32", "num_kv_blocks": 128}
    with LLM(str(path), skip_tokenizer_init=True, **options) as llm:
        for prompt in ([*range(5, 44)], [7, 8, 9]):
            for width in (1, 2, 3, 4):
                params = BeamSearchParams(
                    beam_width=width, max_tokens=MAX_TOKENS, ignore_eos=True, length_penalty=0.0
                )
                (ours,) = llm.beam_search([prompt], params)
                if width == 1:
                    theirs = ask_transformers(path, Asked(tuple(prompt), SamplingParams()))
                    assert ours.sequences[0].tokens[len(prompt) :] == tuple(theirs.tokens)
                    continue
                found = search_transformers(path, prompt, width=width, eos=())
                assert [list(one.tokens[len(prompt) :]) for one in ours.sequences] == [
                    answer for answer, _ in found
                ]
                for one, (_, score) in zip(ours.sequences, found, strict=True):
                    assert one.cum_logprob == pytest.approx(score, abs=MAX_TOKENS * 1e-5)


def test_where_sequences_end_ours_are_no_worse_than_transformers(tmp_path: Path) -> None:
    """They take an end only where it is among the first `width` of a step, we (as vLLM) wherever it
    is among the candidates: so the i-th of ours is at least as likely as the i-th of theirs."""
    path = make_checkpoint("llama2", tmp_path, seed=3, eos_token_id=list(BEAM_EOS))
    options: dict[str, Any] = {"num_threads": 1, "dtype": "float32", "num_kv_blocks": 128}
    with LLM(str(path), skip_tokenizer_init=True, **options) as llm:
        for prompt in ([*range(5, 44)], [7, 8, 9], [100]):
            for width in (2, 3, 4):
                params = BeamSearchParams(
                    beam_width=width, max_tokens=MAX_TOKENS, length_penalty=0.0
                )
                (ours,) = llm.beam_search([prompt], params)
                found = search_transformers(path, prompt, width=width, eos=BEAM_EOS)
                for one, (_, score) in zip(ours.sequences, found, strict=True):
                    assert one.cum_logprob >= score - MAX_TOKENS * 1e-5
