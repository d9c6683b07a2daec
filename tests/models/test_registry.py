"""Reading config.json: what is taken; a refusal names key, value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.engine.errors import CheckpointError, ConfigError
from quire.engine.models.registry import read_model_config
from quire.fuzz.checkpoints import KINDS, MAX_POSITIONS, VOCAB_SIZE, Kind, write_config

SLIDING, FULL = "sliding_attention", "full_attention"

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'", "'silu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}", "absent"),
    ({"dual_chunk_attention_config": {}}, "dual_chunk_attention_config is {}", "absent"),
    ({"head_dim": 24}, "head_dim is 24", "multiple of 16"),
    ({"head_dim": -16}, "head_dim is -16", "integer from 1"),
    ({"hidden_size": 72}, "hidden_size is 72", "multiple of 16"),
    ({"intermediate_size": 100}, "intermediate_size is 100", "multiple of 16"),
    ({"intermediate_size": "96"}, "intermediate_size is '96'", "integer"),
    ({"vocab_size": True}, "vocab_size is True", "integer"),
    ({"vocab_size": None}, "vocab_size is missing", "config.json"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3", "num_attention_heads (4)"),
    ({"num_attention_heads": 12}, "num_attention_heads is 12", "hidden_size (64)"),
    ({"max_position_embeddings": 8}, "max_position_embeddings is 8", "from 16"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0", "above 0"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'", "above 0"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'", "true or false"),
    ({"attention_bias": 1}, "attention_bias is 1", "true or false"),
    ({"torch_dtype": "float16"}, "torch_dtype is 'float16'", "'bfloat16'"),
    ({"dtype": "float64"}, "dtype is 'float64'", "'bfloat16'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5", "absent"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'", "'llama3'"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing", "rope_scaling"),
    ({"architectures": ["T5Model"]}, "architectures is ['T5Model']", "Qwen3ForCausalLM"),
    ({"architectures": None}, "architectures is None", "LlamaForCausalLM"),
    ({"eos_token_id": [1, -1]}, "eos_token_id is [1, -1]", "token id"),
]


def change(kind: Kind, folder: Path, **changes: Any) -> Path:
    """Write a config whose fields are changed after its spelling was."""
    write_config(kind, folder, rope_parameters=changes.pop("rope_parameters", None))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(("changes", "given", "allowed"), REFUSED)
def test_unsupported_value_is_named(
    changes: dict[str, Any], given: str, allowed: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_model_config(change("llama2", tmp_path, **changes))
    assert given in str(caught.value)
    assert allowed in str(caught.value)


def test_rope_by_layer_type_is_refused(tmp_path: Path) -> None:
    path = change("qwen2", tmp_path)
    file = path / "config.json"
    nested = {"rope_parameters": {"full_attention": {"rope_type": "default"}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | nested))
    with pytest.raises(ConfigError, match="rope_parameters differs between layers"):
        read_model_config(path)


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention", "chunked", "x"], 3])
def test_unknown_layer_types_are_refused(kinds: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layer_types"):
        read_model_config(change("qwen2", tmp_path, layer_types=kinds))


def test_linear_segments_must_divide_the_widths(tmp_path: Path) -> None:
    path = write_config("llama2", tmp_path)
    assert read_model_config(path, linear_segments=2).decoder.linear_segments == 2
    with pytest.raises(ConfigError, match=r"linear_segments is 4 .*intermediate_size is 96"):
        read_model_config(path, linear_segments=4)


@pytest.mark.parametrize(
    ("kind", "changes", "windows"),
    [
        ("llama2", {}, (0, 0)),
        ("llama2", {"sliding_window": 24, "use_sliding_window": True}, (0, 0)),
        ("mistral", {}, (24, 24)),
        ("mistral", {"sliding_window": None}, (0, 0)),
        ("qwen2", {}, (0, 0, 40)),
        ("qwen2", {"use_sliding_window": False}, (0, 0, 0)),
        ("qwen2", {"layer_types": [SLIDING, FULL, FULL]}, (40, 0, 0)),
        ("qwen3", {"use_sliding_window": True}, (0, 0)),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, (0, 4096)),
    ],
)
def test_windows_by_layer(
    kind: Kind, changes: dict[str, Any], windows: tuple[int, ...], tmp_path: Path
) -> None:
    assert read_model_config(change(kind, tmp_path, **changes)).decoder.windows == windows


def test_mistral_without_a_word_on_windows_has_4096(tmp_path: Path) -> None:
    path = write_config("mistral", tmp_path)
    file = path / "config.json"
    values = json.loads(file.read_text())
    del values["sliding_window"]
    file.write_text(json.dumps(values))
    assert read_model_config(path).decoder.windows == (4096, 4096)


def test_dtype_follows_wish_then_checkpoint(tmp_path: Path) -> None:
    path = change("qwen3", tmp_path, torch_dtype="bfloat16")
    assert read_model_config(path).dtype == torch.bfloat16
    assert read_model_config(path, "float32").dtype == torch.float32
    assert read_model_config(change("qwen3", tmp_path, torch_dtype="float16"), "bfloat16")
    assert read_model_config(change("qwen3", tmp_path, torch_dtype=None)).dtype == torch.float32


@pytest.mark.parametrize(
    ("generation", "config", "wanted"),
    [(None, 1, (1,)), ([5, 3, 5], 1, (5, 3)), (7, [1, 2], (7,)), (None, None, ())],
)
def test_eos_ids_come_from_generation_config_first(
    generation: object, config: object, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    path = change("llama3", tmp_path, eos_token_id=config)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_model_config(path).eos_token_ids == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_model_config_repeats_what_the_engine_needs(kind: Kind, tmp_path: Path) -> None:
    config = read_model_config(write_config(kind, tmp_path))
    assert (config.vocab_size, config.max_model_len) == (VOCAB_SIZE, MAX_POSITIONS)
    assert config.path == tmp_path


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": "\ud800"'])
def test_broken_config_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_absent_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_model_config(tmp_path)
