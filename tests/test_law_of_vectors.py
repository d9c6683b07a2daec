"""The law, of vectors: a prompt's vector is a function of the prompt alone, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from quire import LLM, PoolingParams, SamplingParams
from quire.engine.models.encoder import EncoderModel
from quire.engine.models.pooled_loader import load_pooled
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops, choose_sums
from quire.fuzz.checkpoints import VOCAB_SIZE, make_checkpoint
from quire.fuzz.pooled_checkpoints import make_pooled
from quire.reference import decoder, encoder
from quire.reference.pooling import pool

RAW = PoolingParams(normalize=False, use_activation=False)
KINDS = (
    *("bert-mean-dense", "xlmr-cross", "bert-masked", "qwen3-last", "llama-mean"),
    *("bert-weighted", "qwen3-many"),
)
WAYS: dict[str, dict[str, Any]] = {
    "together": {},
    "one slot": {"max_num_seqs": 1},
    "overlap 2": {"overlap": 2},
    "block size 1": {"block_size": 1, "num_kv_blocks": 400},
    "block size 8, few blocks": {"block_size": 8, "num_kv_blocks": 40},
    "two threads": {"num_threads": 2},
    "reference": {"backend": "reference", "block_size": 32},
    "two threads, bfloat16": {"num_threads": 2, "dtype": "bfloat16"},
    "reference, bfloat16": {"backend": "reference", "dtype": "bfloat16", "max_num_seqs": 2},
}
CHUNKED: dict[str, dict[str, Any]] = {
    "small chunks": {"max_num_batched_tokens": 7},
    "chunks of one, no cache": {"max_num_batched_tokens": 1, "enable_prefix_caching": False},
    "small chunks, overlap 2, few blocks": {
        "max_num_batched_tokens": 9,
        "overlap": 2,
        "block_size": 4,
        "num_kv_blocks": 80,
    },
}


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
        for length in (1, 2, 17, 33, 64, 65, 90)
    ]
    return [*prompts, prompts[4][:40], prompts[4]]


def oracle(path: Path, dtype: Any) -> list[NDArray[np.float32]]:
    """Every prompt alone, dense, by the definition."""
    ops = choose_ops("cpu", "reference")
    config = read_model_config(path, dtype, sums=choose_sums("auto"))
    vectors = []
    with torch.inference_mode():
        model = load_pooled(config, ops)
        assert model.pooler is not None
        for prompt in make_prompts():
            tokens = torch.tensor(prompt, dtype=torch.int32)
            if isinstance(model, EncoderModel):
                states = encoder.hidden(model.config, model.weights, tokens)
            else:
                states = decoder.hidden(model.config, model.weights, tokens).last
            pooled = torch.cat([pool(states, kind) for kind in model.pooler.kinds])[None]
            vectors.append(model.pooler.vectors(pooled, ops, config.dtype)[0].numpy())
    return vectors


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_functions_of_their_prompts(kind: str, tmp_path: Path) -> None:
    made = make_pooled(kind, tmp_path)
    ways = WAYS | (CHUNKED if kind == "qwen3-last" else {})
    wanted = {dtype: oracle(made.path, dtype) for dtype in ("float32", "bfloat16")}
    for name, options in ways.items():
        with LLM(str(made.path), skip_tokenizer_init=True, **options) as llm:
            given = llm.encode(make_prompts(), RAW, use_tqdm=False)
            assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks, name
        for one, vector in zip(given, wanted[options.get("dtype", "float32")], strict=True):
            assert np.array_equal(one.outputs.data, vector), (name, len(one.prompt_token_ids))


def test_a_model_that_generates_embeds_beside(tmp_path: Path) -> None:
    """Its vectors are its last states, whatever is generated in the same steps, and change no
    token of it."""
    path = make_checkpoint("qwen3", tmp_path)
    config = read_model_config(path)
    ops = choose_ops("cpu", "reference")
    from quire.engine.models.loader import load_weights

    weights = load_weights(config, ops)
    prompts = make_prompts()
    wanted = [
        decoder.hidden(config.decoder, weights, torch.tensor(one, dtype=torch.int32)).last[-1]
        for one in prompts
    ]
    params = SamplingParams(max_tokens=12, temperature=0.9, seed=3, ignore_eos=True, logprobs=1)
    ways: list[dict[str, Any]] = [
        {},
        {"overlap": 2, "max_num_batched_tokens": 11},
        {"speculative_config": {"method": "ngram", "costs": {}}},
    ]
    for options in ways:
        with LLM(str(path), skip_tokenizer_init=True, **options) as llm:
            (alone,) = llm.generate(prompts[2], params, use_tqdm=False)
            front = llm._front
            state = front.add(front.prepare(prompts[2], params), 0.0)
            vectors = [front.add(front.prepare(one, RAW), 0.0) for one in prompts]
            while llm.core.has_unfinished:
                llm.core.launch()
                front.deliver(llm.core.land(), 0.0)
            assert state.output().outputs[0].token_ids == alone.outputs[0].token_ids
            for one, row in zip(vectors, wanted, strict=True):
                found = one.output().vector
                assert found is not None and np.array_equal(found, row.numpy()), options


@pytest.mark.parametrize("kind", ["bert-masked", "qwen3-last"])
def test_who_leaves_takes_no_vector_of_others(kind: str, tmp_path: Path) -> None:
    """A request that is aborted while its step is in flight."""
    made = make_pooled(kind, tmp_path)
    wanted, prompts = oracle(made.path, "float32"), make_prompts()
    with LLM(str(made.path), skip_tokenizer_init=True) as llm:
        front = llm._front
        prepared = [front.prepare(one, RAW) for one in prompts]
        states = [front.add(one, 0.0) for one in prepared]
        llm.core.launch()
        for index in (0, 3):
            front.abort(prepared[index].request.request_id, 0.0)
        while llm.core.has_unfinished:
            front.deliver(llm.core.land(), 0.0)
            llm.core.launch()
        for index, (state, vector) in enumerate(zip(states, wanted, strict=True)):
            found = state.output().vector
            if index in (0, 3):
                assert found is None
            else:
                assert found is not None and np.array_equal(found, vector), index
        assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
