"""Loading weights: every way to write them, what is refused, and how much memory it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.engine.errors import CheckpointError
from quire.engine.models.loader import INDEX, SINGLE, load_model, load_weights
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import write_config
from quire.reference.decoder import DecoderWeights, logits
from safetensors.torch import load_file, save_file
from torch import Tensor

REFERENCE = choose_ops("cpu", "reference")
TOKENS = torch.arange(20, dtype=torch.int32)


@pytest.fixture(scope="session")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The tensors of a tiny untied Qwen2 by name: biases, and windows of no matter."""
    from quire.fuzz.checkpoints import make_checkpoint

    return load_file(make_checkpoint("qwen2", tmp_path_factory.mktemp("qwen2")) / SINGLE)


def write(folder: Path, tensors: dict[str, Tensor], **changes: object) -> Path:
    write_config("qwen2", folder, **changes)
    save_file(tensors, folder / SINGLE)
    return folder


def write_sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Two shards that take turns, so that parts of one matrix lie in different files."""
    write_config("qwen2", folder)
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        shard = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(shard, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder: Path, dtype: str = "float32") -> DecoderWeights:
    return load_weights(read_model_config(folder, dtype), REFERENCE)  # type: ignore[arg-type]


def some_logits(folder: Path, dtype: str = "float32") -> Tensor:
    return logits(read_model_config(folder, dtype).decoder, load(folder, dtype), TOKENS)  # type: ignore[arg-type]


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return str(caught.value)


def test_sharded_equals_single(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    single = some_logits(write(tmp_path / "one", tensors))
    assert torch.equal(some_logits(write_sharded(tmp_path / "two", tensors)), single)


def test_shards_of_transformers_load(tmp_path: Path) -> None:
    from quire.fuzz.checkpoints import make_checkpoint

    one = make_checkpoint("llama3", tmp_path / "one")
    two = make_checkpoint("llama3", tmp_path / "two", sharded=True)
    assert not (two / SINGLE).exists()
    assert torch.equal(some_logits(one), some_logits(two))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_dtypes_are_cast(
    stored: torch.dtype, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    cast = {name: tensor.to(stored) for name, tensor in tensors.items()}
    plain = {name: tensor.to(stored).float() for name, tensor in tensors.items()}
    one, two = write(tmp_path / "one", cast), write(tmp_path / "two", plain)
    assert torch.equal(some_logits(one), some_logits(two))
    assert some_logits(one, "bfloat16").dtype == torch.bfloat16


def test_known_leftovers_are_tolerated(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """A frequency buffer of old checkpoints, and a head beside a tied embedding."""
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    assert torch.equal(
        some_logits(write(tmp_path / "one", tensors | buffer)),
        some_logits(write(tmp_path / "two", tensors)),
    )
    tied = write(tmp_path / "three", tensors, tie_word_embeddings=True)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    untied = write(tmp_path / "four", tensors | head)
    assert torch.equal(some_logits(tied), some_logits(untied))


def test_missing_tensor_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.k_proj.bias"
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    message = refusal(write(tmp_path, rest))
    assert name in message
    assert str(tmp_path) in message


def test_unexpected_tensor_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.bias"
    message = refusal(write(tmp_path, tensors | {name: torch.zeros(64)}))
    assert name in message
    assert SINGLE in message


def test_head_of_an_untied_model_is_needed(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    rest = {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}
    assert "lm_head.weight is missing" in refusal(write(tmp_path, rest))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(64, 32), "shape [64, 32]: it must be [32, 64]"),
        (torch.zeros(32, 64, dtype=torch.int8), "dtype I8"),
        (torch.zeros(32, 64, dtype=torch.float8_e4m3fn), "dtype F8_E4M3"),
        (torch.zeros(()), "shape []"),
    ],
)
def test_unfit_tensor_is_named(
    tensor: Tensor, said: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    message = refusal(write(tmp_path, tensors | {name: tensor}))
    assert said in message
    assert name in message
    assert SINGLE in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:100],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[:8] + b"{" * 40 + data[48:],
        lambda data: b"\xff" * 8 + data[8:],
    ],
)
def test_damaged_file_is_named(
    damage: Callable[[bytes], bytes], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    file = write(tmp_path, tensors) / SINGLE
    file.write_bytes(damage(file.read_bytes()))
    assert f"{file} is truncated or broken" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "not readable JSON"),
        ("{}", "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "tensor a is in 3"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "beside it"),
        ('{"weight_map": {"a": "x.bin"}}', "beside it"),
        ('{"weight_map": {"a": "x.safetensors"}}', "x.safetensors does not exist"),
    ],
)
def test_broken_index_is_named(index: str, said: str, tmp_path: Path) -> None:
    write_config("qwen2", tmp_path)
    (tmp_path / INDEX).write_text(index)
    assert said in refusal(tmp_path)


def test_index_and_shards_must_agree(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, tensors)
    index = json.loads((folder / INDEX).read_text())
    name = "model.norm.weight"
    other = {"part-0.safetensors": "part-1.safetensors", "part-1.safetensors": "part-0.safetensors"}
    index["weight_map"][name] = other[index["weight_map"][name]]
    (folder / INDEX).write_text(json.dumps(index))
    assert f"tensor {name} is missing" in refusal(folder)


def test_tensor_in_two_shards_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, tensors)
    shutil.copy(folder / "part-0.safetensors", folder / "part-2.safetensors")
    index = json.loads((folder / INDEX).read_text())
    first = next(iter(load_file(folder / "part-0.safetensors")))
    index["weight_map"][first] = "part-2.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "in another shard too" in refusal(folder)


def test_folder_without_weights_says_what_it_wants(tmp_path: Path) -> None:
    write_config("qwen2", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "only safetensors" in refusal(tmp_path)


def test_dummy_needs_no_file_and_follows_its_seed(tmp_path: Path) -> None:
    config = read_model_config(write_config("qwen2", tmp_path))

    def dummy(seed: int) -> Tensor:
        weights = load_weights(config, REFERENCE, "dummy", seed=seed)
        return logits(config.decoder, weights, TOKENS)

    assert torch.equal(dummy(1), dummy(1))
    assert not torch.equal(dummy(1), dummy(2))
    assert dummy(1).isfinite().all()
    assert len(set(dummy(1).argmax(-1).tolist())) > 3


def test_bar_goes_to_stderr_when_asked(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_model_config(write(tmp_path, tensors))
    load_model(config, REFERENCE)
    assert capsys.readouterr() == ("", "")
    load_model(config, REFERENCE, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{len(tensors)}/{len(tensors)}" in captured.err


def test_everything_is_made_where_it_stays(tmp_path: Path) -> None:
    """On the device without memory, since a test has no other."""
    from quire.engine.models.base import DecoderModel
    from quire.engine.models.weights import WeightBuilder

    config = read_model_config(write_config("llama3", tmp_path))
    builder = WeightBuilder(config.decoder, config.family.names, REFERENCE, "meta")
    for name, part in builder.parts.items():
        builder.place(name, torch.zeros(part.shape))
    model = DecoderModel(config.decoder, builder.build(), REFERENCE)
    cache: Any = model.new_caches(2, 16)[0]
    layer = model.weights.layers[0]
    tensors = (model._cos_sin, cache.keys, cache.values, layer.input_norm, *layer.qkv.segments)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert model.device.type == "meta"


MEASURE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from quire import reference
from quire.engine.models.loader import load_weights
from quire.engine.models.registry import read_model_config

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def load(folder):
    return load_weights(read_model_config(Path(folder)), reference)

load(sys.argv[1])  # what the libraries take once is not the loader's
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
weights = load(sys.argv[2])
print(status("VmHWM") - before)
"""


def test_memory_peaks_at_the_weights_and_a_tensor(tmp_path: Path) -> None:
    """101 MB of weights, the greatest matrix 8 MB (staged, then packed): 118 MB measured.

    The allocator is told to give freed matrices back at once, as it does by itself from 32 MB on.
    """
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    changes = shape | {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 8}
    small = write_config("llama2", tmp_path / "small")
    big = write_config("llama2", tmp_path / "big", **changes)
    for folder in (small, big):
        write_random(folder)
    size = (big / SINGLE).stat().st_size
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(big)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert size < int(run.stdout) < size * 1.25, (size, run.stdout)


def write_random(folder: Path) -> None:
    from quire.engine.models.weights import WeightBuilder

    config = read_model_config(folder)
    parts = WeightBuilder(config.decoder, config.family.names, REFERENCE).parts
    save_file({name: torch.zeros(part.shape) for name, part in parts.items()}, folder / SINGLE)
