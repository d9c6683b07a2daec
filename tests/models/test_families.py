"""Every family against transformers: the oracle that nobody here wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from quire.engine.config import DTypeName
from quire.engine.models.loader import load_weights
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import KINDS, OWN, SHAPE, VOCAB_SIZE, Kind, Made, write_config
from quire.reference.decoder import logits
from quire.reference.generate import Wish, generate

REFERENCE = choose_ops("cpu", "reference")


def make_tokens(num_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("num_tokens", [1, 17, 200])
def test_logits_equal_transformers(made: Made, num_tokens: int) -> None:
    config = read_model_config(made.path)
    weights = load_weights(config, REFERENCE)
    tokens = make_tokens(num_tokens, seed=num_tokens)
    with torch.no_grad():
        wanted = made.model(tokens[None].long()).logits[0]
    torch.testing.assert_close(logits(config.decoder, weights, tokens), wanted, rtol=0.0, atol=1e-4)


def test_greedy_tokens_and_logprobs_equal_transformers(made: Made) -> None:
    config = read_model_config(made.path)
    weights = load_weights(config, REFERENCE)
    prompt = make_tokens(33, seed=2).tolist()
    wish = Wish(max_tokens=16, num_logprobs=2)
    given = generate(config.decoder, weights, prompt, wish)
    with torch.no_grad():
        sequence = torch.tensor([prompt + given.token_ids])
        wanted = made.model(sequence).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert given.token_ids == wanted.argmax(-1).tolist()
    for row, one in zip(wanted, given.logprobs, strict=True):
        top = row.topk(2)
        assert one.top_ids[0].tolist() == top.indices.tolist()
        torch.testing.assert_close(one.top[0], top.values, rtol=0.0, atol=1e-4)


def test_bfloat16_stays_near_float32(made: Made) -> None:
    tokens = make_tokens(64, seed=3)
    rows = []
    for dtype in get_args(DTypeName)[1:]:
        config = read_model_config(made.path, dtype)
        rows.append(logits(config.decoder, load_weights(config, REFERENCE), tokens).float())
    assert (rows[0] - rows[1]).norm() / rows[0].norm() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings_of_a_config_mean_the_same(kind: Kind, tmp_path: Path) -> None:
    """rope_theta, rope_scaling, torch_dtype against rope_parameters and dtype."""
    import transformers

    name, own = OWN[kind]
    new = tmp_path / "new"
    config = getattr(transformers, f"{name}Config")(**(SHAPE | own), dtype="float32")
    config.architectures = [f"{name}ForCausalLM"]
    config.save_pretrained(new)
    old = write_config(kind, tmp_path / "old")
    assert read_model_config(new).decoder == read_model_config(old).decoder


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3"])
def test_frequencies_equal_transformers(rope_type: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters: dict[str, Any] = {
        "rope_type": rope_type,
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if rope_type != "llama3":
        parameters = {key: parameters[key] for key in ("rope_type", "rope_theta", "factor")}
    changes: dict[str, Any] = {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_parameters": parameters,
    }
    ours = read_model_config(write_config("llama2", tmp_path, **changes)).decoder
    theirs = LlamaRotaryEmbedding(LlamaConfig(**changes)).inv_freq
    torch.testing.assert_close(torch.tensor(ours.inverse_frequencies), theirs, rtol=1e-6, atol=0.0)
