"""The definition of every result, in pure PyTorch. This module satisfies `reference.ops.Ops`.

Importing the package costs little: torch itself loads, and nothing of the kernels.
"""

from .activation import gelu, silu_mul
from .attention import paged_attention
from .edits import edit_logits
from .embedding import embed
from .kv import copy_blocks, new_kv_cache, read_kv
from .linear import gated_linear, linear, pack_linear, unpack_linear
from .norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .prepare import prepare, store_tokens
from .rope import qkv_post
from .sampling import logprobs, sample

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "copy_blocks",
    "edit_logits",
    "embed",
    "gated_linear",
    "gelu",
    "layer_norm",
    "linear",
    "logprobs",
    "new_kv_cache",
    "pack_linear",
    "paged_attention",
    "prepare",
    "qkv_post",
    "read_kv",
    "rms_norm",
    "sample",
    "silu_mul",
    "store_tokens",
    "unpack_linear",
]
