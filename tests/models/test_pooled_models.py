"""Models that give vectors against transformers: every kind of checkpoint, alone and together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quire import LLM, PoolingParams
from quire.engine.config import PoolerConfig
from quire.engine.errors import CheckpointError, ConfigError
from quire.engine.models.bert import BENDS
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.engine.text.pooled import PooledIds
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.pooled_checkpoints import (
    LAYOUTS,
    MAX_POSITIONS,
    POOLED_KINDS,
    PooledCheckpoint,
    make_pooled,
)
from quire.reference.encoder import bent
from safetensors.torch import load_file, save_file

RAW = PoolingParams(normalize=False, use_activation=False)
LENGTHS = (1, 7, 16, 17, 33, 64, 90)


@pytest.fixture(scope="module", params=POOLED_KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pooled(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llm(made: PooledCheckpoint) -> Iterator[LLM]:
    with LLM(str(made.path), skip_tokenizer_init=True) as engine:
        yield engine


def make_prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def test_vectors_equal_transformers(made: PooledCheckpoint, llm: LLM) -> None:
    prompts = [make_prompt(length) for length in LENGTHS]
    together = llm.encode(prompts, RAW, use_tqdm=False)
    for prompt, output in zip(prompts, together, strict=True):
        wanted = made.vector(prompt).numpy()
        np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)
        assert list(output.prompt_token_ids) == prompt


def test_a_vector_is_the_same_alone_and_among_others(llm: LLM) -> None:
    prompts = [make_prompt(length) for length in LENGTHS]
    together = llm.encode(prompts, RAW, use_tqdm=False)
    for prompt, output in zip(prompts, together, strict=True):
        (alone,) = llm.encode(prompt, RAW, use_tqdm=False)
        assert np.array_equal(alone.outputs.data, output.outputs.data)
    assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks


def test_what_becomes_of_a_vector_is_the_checkpoints_to_say(
    made: PooledCheckpoint, llm: LLM
) -> None:
    layout, prompt = LAYOUTS[made.kind], make_prompt(20)
    raw = made.vector(prompt).double()
    if "num_labels" not in layout.changes:
        normalize = layout.pooling is None or layout.normalize
        wanted = raw / raw.norm() if normalize else raw
        (output,) = llm.embed(prompt, use_tqdm=False)
        np.testing.assert_allclose(output.outputs.embedding, wanted.numpy(), rtol=0, atol=1e-5)
        return
    many = layout.changes.get("problem_type") is None and len(raw) > 1
    wanted = raw.softmax(0) if many else raw.sigmoid()
    (output,) = llm.classify(prompt, use_tqdm=False)
    np.testing.assert_allclose(output.outputs.probs, wanted.numpy(), rtol=0, atol=1e-5)


def test_the_longest_prompt_fits_and_a_longer_one_is_refused(
    made: PooledCheckpoint, llm: LLM
) -> None:
    longest = llm.max_model_len
    if LAYOUTS[made.kind].encodes:
        assert longest in (MAX_POSITIONS, MAX_POSITIONS - 2)
    prompt = make_prompt(longest)
    (output,) = llm.encode(prompt, RAW, use_tqdm=False)
    wanted = made.vector(prompt).numpy()
    np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)
    with pytest.raises(ValueError, match=f"has {longest + 1} tokens: it must have at most"):
        llm.encode([*prompt, 5], RAW, use_tqdm=False)


def test_a_model_without_a_head_draws_no_tokens(llm: LLM) -> None:
    with pytest.raises(ValueError, match="does not generate"):
        llm.generate([5, 6, 7], use_tqdm=False)


@pytest.mark.parametrize("kind", ["bert-masked", "bert-classes", "qwen3-last", "llama-mean"])
def test_bfloat16_stays_near_float32(kind: str, tmp_path: Path) -> None:
    made = make_pooled(kind, tmp_path)
    prompt = make_prompt(50)
    with LLM(str(made.path), skip_tokenizer_init=True, dtype="bfloat16") as llm:
        (output,) = llm.encode(prompt, RAW, use_tqdm=False)
    wanted = made.vector(prompt).numpy()
    assert np.linalg.norm(output.outputs.data - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", ["bert", "roberta-classes", "qwen3-last"])
def test_dummy_weights_need_no_file(kind: str, tmp_path: Path) -> None:
    made = make_pooled(kind, tmp_path)
    (made.path / "model.safetensors").unlink()
    with LLM(str(made.path), skip_tokenizer_init=True, load_format="dummy") as llm:
        (output,) = llm.encode([3, 4, 5], RAW, use_tqdm=False)
    assert np.isfinite(output.outputs.data).all()


def change_tensors(path: Path, rename: dict[str, str]) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    for old, new in rename.items():
        tensors[new] = tensors.pop(old)
    save_file(tensors, file, {"format": "pt"})


def test_old_names_of_norms_are_known(tmp_path: Path) -> None:
    made = make_pooled("bert-masked", tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if "LayerNorm" in name]
    old = {
        name: name.replace(".weight", ".gamma").replace(".bias", ".beta")
        for name in names
        if name.startswith("bert.")
    }
    assert old
    change_tensors(tmp_path, old)
    with LLM(str(tmp_path), skip_tokenizer_init=True) as llm:
        (output,) = llm.encode([3, 4, 5], RAW, use_tqdm=False)
    wanted = made.vector([3, 4, 5]).numpy()
    np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path: Path) -> None:
    make_pooled("bert", tmp_path)
    name = "encoder.layer.1.output.dense.bias"
    change_tensors(tmp_path, {name: "encoder.layer.7.output.dense.bias"})
    with pytest.raises(CheckpointError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias is"):
        LLM(str(tmp_path), skip_tokenizer_init=True)


def rewrite(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish': it must be one of gelu, gelu_python"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3: it must be a divisor"),
        ({"matryoshka_dimensions": [0]}, "matryoshka_dimensions"),
        ({"architectures": ["BertForQuestionAnswering"]}, "architectures"),
    ],
)
def test_a_config_that_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make_pooled("bert", tmp_path)
    rewrite(tmp_path / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        read_model_config(tmp_path)


def test_modules_that_are_not_supported_are_named(tmp_path: Path) -> None:
    make_pooled("bert-mean-dense", tmp_path)
    dense, pooling = tmp_path / "2_Dense/config.json", tmp_path / "1_Pooling/config.json"
    before = dense.read_text(), pooling.read_text()
    rewrite(dense, in_features=32)
    with pytest.raises(ConfigError, match="in_features is 32: it must be 64"):
        read_model_config(tmp_path)
    dense.write_text(before[0])
    rewrite(dense, activation_function="torch.nn.modules.activation.GELU")
    with pytest.raises(ConfigError, match="activation_function"):
        read_model_config(tmp_path)
    dense.write_text(before[0])
    rewrite(pooling, pooling_mode="sum")
    with pytest.raises(ConfigError, match="pooling_mode is 'sum': it must be one of cls, max"):
        read_model_config(tmp_path)
    pooling.write_text(before[1])
    modules = json.loads((tmp_path / "modules.json").read_text())
    for type_, path in (("sentence_transformers.models.LSTM", "1"), (modules[1]["type"], "../x")):
        changed = [modules[0], {"type": type_, "path": path}]
        (tmp_path / "modules.json").write_text(json.dumps(changed))
        with pytest.raises((ConfigError, CheckpointError), match="LSTM|must be a folder beside"):
            read_model_config(tmp_path)


@pytest.mark.parametrize("act", [act for act in BENDS if act != "gelu"])
def test_activations_equal_transformers(act: str, tmp_path: Path) -> None:
    made = make_pooled("bert-weighted", tmp_path, hidden_act=act)
    prompts = [make_prompt(length) for length in LENGTHS]
    with LLM(str(tmp_path), skip_tokenizer_init=True) as llm:
        together = llm.encode(prompts, RAW, use_tqdm=False)
        (alone,) = llm.encode(prompts[3], RAW, use_tqdm=False)
    assert np.array_equal(alone.outputs.data, together[3].outputs.data)
    for prompt, output in zip(prompts, together, strict=True):
        wanted = made.vector(prompt).numpy()
        np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activations_have_the_same_bits_on_every_backend(kind: Any, dtype: torch.dtype) -> None:
    """And the right ones, far out too."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(7, 48, generator=generator) * torch.logspace(-3, 4, 48)).to(dtype)
    x[0, :3] = torch.tensor([0.0, 1e30, -1e30])
    reference, kernels = (choose_ops("cpu", name) for name in ("reference", "kernels"))
    given = bent(x, kind, reference.gelu, reference.silu_mul)
    assert torch.equal(given, bent(x, kind, kernels.gelu, kernels.silu_mul))
    wide, functions = x.double(), torch.nn.functional
    wanted = {
        "gelu": lambda: functions.gelu(wide),
        "gelu_tanh": lambda: functions.gelu(wide, approximate="tanh"),
        "relu": lambda: functions.relu(wide),
        "silu": lambda: functions.silu(wide),
    }[kind]()
    bound = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((given.double() - wanted).abs() <= bound * wanted.abs().clamp(min=1.0)).all()


def test_modes_are_known_by_their_new_names(tmp_path: Path) -> None:
    """One or a list of them, in the list's order; no mode at all is the mean."""
    made = make_pooled("qwen3-many", tmp_path)
    file = tmp_path / "1_Pooling/config.json"
    modes = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    file.write_text(json.dumps({"embedding_dimension": 64, "pooling_mode": modes}))
    assert read_model_config(tmp_path).pooling.width == 24
    with LLM(str(tmp_path), skip_tokenizer_init=True) as llm:
        (output,) = llm.encode(make_prompt(9), RAW, use_tqdm=False)
    wanted = made.vector(make_prompt(9)).numpy()
    np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)
    with pytest.raises(ConfigError, match="several ways at once"):
        read_model_config(tmp_path, pooler=PoolerConfig(pooling_type="MEAN"))
    (tmp_path / "modules.json").write_text(
        json.dumps([{}, {"type": "Pooling", "path": "1_Pooling"}])
    )
    for given, kinds in (
        ("max", ("max",)),
        (None, ("mean",)),
        (modes[3:1:-1], ("mean_sqrt_len", "mean")),
    ):
        file.write_text(json.dumps({"embedding_dimension": 64, "pooling_mode": given}))
        pooling = read_model_config(tmp_path).pooling
        assert (pooling.kinds, pooling.width) == (kinds, 64 * len(kinds))


@pytest.mark.parametrize("kind", ["qwen3-many", "bert-weighted", "bert-mean-dense"])
def test_tokens_that_do_not_count_are_not_pooled(kind: str, tmp_path: Path) -> None:
    """Each request of a batch has its own."""
    made = make_pooled(kind, tmp_path)
    prompts = [
        PooledIds(np.array(make_prompt(length), np.int32), None, start)
        for length in (1, 9, 40)
        for start in (0, 1, 7)
        if start < length
    ]
    with LLM(str(tmp_path), skip_tokenizer_init=True) as llm:
        given = llm.encode(prompts, RAW, use_tqdm=False)  # type: ignore[arg-type]  # as the API does
    for one, output in zip(prompts, given, strict=True):
        wanted = made.vector(one.token_ids.tolist(), skipped=one.start).numpy()
        np.testing.assert_allclose(output.outputs.data, wanted, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "wish", "message"),
    [
        ({"prompts": ["a"]}, None, "prompts is .* an object of texts"),
        ({"prompts": {"a": 1}}, None, "prompts is .* an object of texts"),
        ({"default_prompt_name": "q"}, None, r"default_prompt_name is 'q': it must be one of \[\]"),
        ({"prompts": {"a": "x"}}, "q", r"default_prompt_name is 'q': .* one of \['a'\]"),
    ],
)
def test_prompts_that_are_none_are_named(
    tmp_path: Path, settings: dict[str, Any], wish: str | None, message: str
) -> None:
    make_pooled("bert-mean-dense", tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        read_model_config(tmp_path, pooler=PoolerConfig(default_prompt_name=wish))


def test_options_decide_what_a_checkpoint_leaves_open(tmp_path: Path) -> None:
    made = make_pooled("bert", tmp_path)
    options: dict[str, Any] = {"pooling_type": "MEAN", "normalize": False}
    with LLM(str(tmp_path), skip_tokenizer_init=True, pooler_config=options) as llm:
        (output,) = llm.embed(make_prompt(12), use_tqdm=False)
    ids = torch.tensor([make_prompt(12)])
    with torch.no_grad():
        wanted = made.model(ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(output.outputs.embedding, wanted, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "generate"}, "which draws no tokens"),
        ({"max_num_batched_tokens": 50}, "must be at least the model length, 96"),
        ({"speculative_config": {"method": "ngram"}}, "speculative_config is for models that"),
        ({"target_itl_ms": 5.0}, "target_itl_ms is for models that generate"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    make_pooled("bert", tmp_path)
    with pytest.raises(ConfigError, match=message):
        LLM(str(tmp_path), skip_tokenizer_init=True, **options)


def test_sentence_transformers_longest_text_counts(tmp_path: Path) -> None:
    make_pooled("bert-mean-dense", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert read_model_config(tmp_path).max_model_len == 20
