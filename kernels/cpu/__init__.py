"""The operations on the CPU, compiled by numba. This module satisfies `reference.ops.Ops`.

Twin of `reference`: the same file names, function names and signatures, and the same bits on every
input (payloads of NaN aside). Importing it compiles the kernels, or loads them from numba's cache.
"""

from .activation import gelu, silu_mul
from .attention import paged_attention
from .edits import edit_logits
from .embedding import embed
from .kv import copy_blocks, new_kv_cache, read_kv
from .linear import gated_linear, linear, pack_linear, unpack_linear
from .logprobs import logprobs
from .norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .prepare import prepare, store_tokens
from .rope import qkv_post
from .sampling import sample

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
