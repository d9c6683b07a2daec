"""Tiny checkpoints of what guesses on the device, in the layouts in which such are published.

A draft model is its target with noise in the weights. Heads are random, which is enough: they draw
with the target's noise, and so often what it draws.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine.device.draft_model import ModelHead
from ..engine.device.guesser import HeadMaker
from ..engine.device.state_head import StateHead
from ..engine.models.base import DecoderModel
from ..engine.models.family import TensorNames
from ..engine.models.head_loader import EAGLE3, MTP, HeadBuilder
from ..engine.models.heads import HeadModel
from ..engine.models.weights import WeightBuilder
from ..reference.heads import HeadConfig
from .checkpoints import Tiny, noise
from .drafters import DrafterName

HeadKind = Literal[
    "draft_model", "eagle3", "eagle3 few", "eagle3 nested", "deepseek", "qwen3-next", "mimo"
]
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
WEIGHTS = "model.safetensors"

LAYER = {
    "self_attn.q_proj": "qx",
    "self_attn.k_proj": "kx",
    "self_attn.v_proj": "kx",
    "self_attn.o_proj": "hq",
    "post_attention_layernorm": "h",
    "mlp.gate_proj": "mh",
    "mlp.up_proj": "mh",
    "mlp.down_proj": "hm",
}
"""A layer's modules and shapes: h hidden, q queries, k keys, m mlp, x what qkv takes."""
JOINED: dict[str, dict[str, str]] = {
    "eagle3": {
        "fc": "ht",
        "midlayer.input_layernorm": "h",
        "midlayer.hidden_norm": "h",
        "norm": "h",
        "lm_head": "dh",
    },
    "deepseek": {
        "model.layers.N.eh_proj": "hj",
        "model.layers.N.enorm": "h",
        "model.layers.N.hnorm": "h",
        "model.layers.N.input_layernorm": "h",
        "model.layers.N.shared_head.norm": "h",
        "model.layers.N.shared_head.head": "vh",
        "model.layers.N.embed_tokens": "vh",
    },
    "qwen3-next": {
        "mtp.fc": "hj",
        "mtp.pre_fc_norm_embedding": "h",
        "mtp.pre_fc_norm_hidden": "h",
        "mtp.layers.0.input_layernorm": "h",
        "mtp.norm": "h",
    },
    "mimo": {
        "model.mtp_layers.0.input_proj": "hj",
        "model.mtp_layers.0.token_layernorm": "h",
        "model.mtp_layers.0.hidden_layernorm": "h",
        "model.mtp_layers.0.input_layernorm": "h",
        "model.mtp_layers.0.final_layernorm": "h",
    },
}
"""What each kind has beside its layer: j token and state, t three states, d what it can guess."""
PREFIXES = {
    "eagle3": "midlayer.",
    "deepseek": "model.layers.N.",
    "qwen3-next": "mtp.layers.0.",
    "mimo": "model.mtp_layers.0.",
}
TAPS = (1, 0, 1)


def make_guessing(kind: HeadKind, target: Path, *, seed: int = 5) -> dict[str, Any]:
    """Write what guesses for the checkpoint `target`; return its speculative_config, costs given.

    MTP layers become part of the target's own files: from then on it is a checkpoint with them.
    """
    config = json.loads((target / "config.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    if kind == "draft_model":
        return {"method": kind, "model": str(_make_draft(target, generator)), "costs": {}}
    few = 40 if kind.endswith("few") else config["vocab_size"]
    name = kind.split()[0] if kind.startswith("eagle3") else kind
    tensors = _head(name, config, generator, few)
    if name != "eagle3":
        stored = load_file(target / WEIGHTS)
        save_file(stored | tensors, target / WEIGHTS, metadata={"format": "pt"})
        config["num_nextn_predict_layers"] = 1
        (target / "config.json").write_text(json.dumps(config))
        return {"method": "mtp", "costs": {}}
    folder = target / f"head-{few}"
    folder.mkdir(exist_ok=True)
    own = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1}
    own |= {"draft_vocab_size": few, "eagle_config": {"eagle_aux_hidden_state_layer_ids": TAPS}}
    dropped = ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")
    shape = {key: value for key, value in config.items() if key not in dropped}
    if kind.endswith("nested"):
        # As vLLM's `speculators` has it.
        own |= {"eagle_aux_hidden_state_layer_ids": TAPS, "transformer_layer_config": shape | own}
        del own["eagle_config"]
        shape = {}
        tensors = {key.replace("midlayer.", "layers.0."): one for key, one in tensors.items()}
    (folder / "config.json").write_text(json.dumps(shape | own))
    if few < config["vocab_size"]:
        known = torch.randperm(config["vocab_size"], generator=generator)[:few].sort().values
        tensors["d2t"] = known - torch.arange(few)
        tensors["t2d"] = torch.zeros(config["vocab_size"], dtype=torch.bool)
        tensors["t2d"][known] = True
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return {"method": "eagle3", "model": str(folder), "costs": {}}


def _make_draft(target: Path, generator: torch.Generator) -> Path:
    folder = target / "drafter"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((target / "config.json").read_text())
    stored = load_file(target / WEIGHTS)
    noisy = {
        name: tensor + 0.15 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in sorted(stored.items())
    }
    save_file(noisy, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _head(
    kind: str, config: dict[str, Any], generator: torch.Generator, few: int
) -> dict[str, Tensor]:
    """Fill the tensors of a head with noise."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    sizes = {
        "h": hidden,
        "q": heads * head_dim,
        "k": config["num_key_value_heads"] * head_dim,
        "m": config["intermediate_size"],
        "x": 2 * hidden if kind == "eagle3" else hidden,
        "j": 2 * hidden,
        "t": 3 * hidden,
        "d": few,
        "v": config["vocab_size"],
    }
    prefix = PREFIXES[kind]
    shapes = JOINED[kind] | {prefix + name: shape for name, shape in LAYER.items()}
    model_type = config["model_type"]
    if model_type == "qwen3" and kind != "eagle3":
        shapes |= {f"{prefix}self_attn.{name}_norm": "e" for name in "qk"}
    sizes["e"] = head_dim
    tensors = {}
    for name, letters in shapes.items():
        shape: Sequence[int] = [sizes[letter] for letter in letters]
        key = name.replace(".N.", f".{config['num_hidden_layers']}.")
        tensors[f"{key}.weight"] = noise(f"{key}.weight", shape, generator)
    if model_type in ("qwen2", "mimo") and kind != "eagle3":
        for name, letter in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "k")):
            key = f"{prefix}self_attn.{name}.bias".replace(
                ".N.", f".{config['num_hidden_layers']}."
            )
            tensors[key] = noise(key, (sizes[letter],), generator)
    return tensors


def tiny_head(kind: DrafterName, tiny: Tiny, *, seed: int = 1) -> HeadMaker:
    """Make what guesses for a tiny model on its device, with weights that have nothing to do with
    the target's."""
    target, generator = tiny.model, torch.Generator().manual_seed(seed)
    if kind == "model":
        weights = WeightBuilder(tiny.config, TensorNames(), tiny.ops)
        for name, part in weights.parts.items():
            weights.place(name, noise(name, part.shape, generator))
        return partial(ModelHead, DecoderModel(tiny.config, weights.build(), tiny.ops))
    return partial(StateHead, random_head(kind, target, generator))


def random_head(kind: str, target: DecoderModel, generator: torch.Generator) -> HeadModel:
    """Make an eagle3 or mtp head for a target, of noise."""
    layer, is_eagle = replace(target.config, num_layers=1, windows=(0,)), kind == "eagle3"
    layout, targets = (EAGLE3 if is_eagle else MTP)[0], None
    config = HeadConfig(kind="mtp", layer=layer, carries_normed=True)
    if is_eagle:
        targets = torch.randperm(layer.vocab_size, generator=generator)[:64].sort().values
        layer = replace(layer, vocab_size=64, qk_norm=False, linear_segments=1)
        config = HeadConfig(kind="eagle3", layer=layer, taps=TAPS, adds_to_normed=True)
    builder = HeadBuilder(config, layout, {}, target.ops, target)
    for name, part in builder.parts.parts.items():
        builder.parts.place(name, noise(name, part.shape, generator))
    return HeadModel(config, builder.build(targets), target.ops, target.config.vocab_size)
