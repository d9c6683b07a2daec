"""The operations on a GPU, in Triton. This module satisfies `reference.ops.Ops`.

Twin of `reference`: the same file names, function names and signatures. Equal to it bit for bit on
the exact lattice, and on every input where no sum of floats is involved; elsewhere within a bound.
A row's bits are its own on every input. Runs in Triton's interpreter too, where that is asked for.
"""

from .activation import gelu, silu_mul
from .attention import most_split_rows, paged_attention, refuse_head_dim
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
    "most_split_rows",
    "new_kv_cache",
    "pack_linear",
    "paged_attention",
    "prepare",
    "qkv_post",
    "read_kv",
    "refuse_head_dim",
    "rms_norm",
    "sample",
    "silu_mul",
    "store_tokens",
    "unpack_linear",
]
