"""The contract of every tensor operation: what `Ops` promises, in which order it adds, what it
rounds.

`reference/` (pure PyTorch) is the definition; `kernels/cpu` equals it bit for bit on every input,
`kernels/gpu` on the exact lattice and within a bound elsewhere. A module that has these functions
satisfies `Ops`. This file owns names and types only and computes nothing.

The law of this layer: **a row's bits do not depend on its neighbours**, on their number, on how a
sequence is cut into chunks, on the block size or on the number of threads.

Common words of the shapes: tokens (all query tokens of a step, sequence after sequence), rows (the
sequences of a step), slots (places in the device table), blocks and block_size (KV memory), heads,
kv_heads, head_dim, vocab. `dtype` is the model's: float32 or bfloat16. Suffixes of dense code:
t tokens, r rows, h heads, k kv heads, d head_dim, v vocab, b blocks, s place in a block.

Arithmetic that all share, unless an operation says otherwise:

* Inputs are widened to float32, every step is one IEEE float32 operation (round to nearest even),
  never contracted into a fused multiply-add, and the result is rounded once to `dtype`.
* A sum over the width of a row has 16 lanes: lane j adds elements j, j+16, j+32, ... in order,
  then lanes fold by halves (8, 4, 2, 1: lane j += lane j+half). Widths are multiples of 16.
* Products of bfloat16 are added in one of the two orders of `reference.sums`.
* exp2 and log are the polynomials of `reference.activation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, device, dtype

from .sums import Sums

KV_TILE = 64
"""Keys in one unit of attention arithmetic, at absolute positions; no block size changes a bit."""


class KVCache(Protocol):
    """Keys and values of one layer. The layout is private to the `Ops` module that made it."""

    num_blocks: int
    block_size: int
    sums: Sums


class StepRows(NamedTuple):
    """Which tokens of which sequences a step computes: known tokens from `starts` on.

    A padding row has slot -1, and may have no token, or many. It computes nothing that counts:
    nothing is written for it, and its results are undefined.
    """

    slots: Tensor
    """[rows] int32, the row's line in the device table; -1: padding."""
    starts: Tensor
    """[rows] int32, position of the row's first token; not read for padding."""
    query_starts: Tensor
    """[rows + 1] int32, cumulative numbers of tokens, first 0; each row but padding has one or
    more."""


class Batch(NamedTuple):
    """The variable-length batch of one step: prefill, decode and verification alike.

    Row r holds the last `query_starts[r+1] - query_starts[r]` tokens of a sequence of `kv_lens[r]`
    tokens whose keys and values live in the blocks `block_tables[slots[r]]`. A padding row has slot
    -1, kv_len 0 and any number of tokens: its line of the table is not read, its results are
    undefined.
    """

    positions: Tensor
    """[tokens] int32, absolute position of each query token; padding: 0."""
    places: Tensor
    """[tokens] int64, `block * block_size + offset` where the token's key and value are written;
    -1: nowhere (padding)."""
    query_starts: Tensor
    """[rows + 1] int32, cumulative query lengths, first 0."""
    kv_lens: Tensor
    """[rows] int32, keys of the sequence including this step's."""
    slots: Tensor
    """[rows] int32, the row's line in `block_tables`."""
    block_tables: Tensor
    """[num_slots, max_blocks] int32, contiguous; entries past a sequence's blocks are undefined."""


@dataclass(slots=True, eq=False)
class PackedLinear:
    """A weight in the form that its `Ops` module multiplies by. See `Ops.pack_linear`."""

    in_features: int
    out_features: int
    segments: tuple[Tensor, ...]
    """One packed weight for each K segment, left to right."""
    bias: Tensor | None
    """[out] dtype, or longer where the form asks for it."""
    sums: Sums
    """The order in which products of bfloat16 are added."""
    is_gated: bool = False
    """Whether it is for gated_linear; only then may a form depend on it."""


class SamplingRows(NamedTuple):
    """How each row of logits is turned into a token."""

    temperature: Tensor
    """[rows] float32, 0 means greedy (and the filters and noise are not used)."""
    top_k: Tensor
    """[rows] int32, 0 means no limit."""
    top_p: Tensor
    """[rows] float32 in (0, 1]; 1 means no limit."""
    min_p: Tensor
    """[rows] float32 in [0, 1]; 0 means no limit."""
    seeds: Tensor
    """[rows] int64, the 64 bits of the request's seed: the Philox key (low word, high word)."""
    indices: Tensor
    """[rows] int32, index of the token among the request's outputs, from 0."""


class EditRows(NamedTuple):
    """What m rows of a step's logits change, and the histories that it depends on.

    Tensors on the device of the logits. Entries are indices among the m rows, ascending.
    """

    known: Tensor
    """[num_slots, width] int32, contiguous."""
    rows: Tensor
    """[m] int64, the rows of the logits, ascending,"""
    slots: Tensor
    """[m] int64, their lines of known tokens,"""
    lengths: Tensor
    """[m] int64, how many of these are known,"""
    prompts: Tensor
    """[m] int64, and how many belong to the prompt; one or more where there are penalties."""
    masked: Tensor
    """[d] int64, the entries of those that may not draw every token,"""
    denied: Tensor
    """[d, vocab] bool, contiguous, and which ones they may not."""
    penalties: Tensor
    """[m, 3] float32: repetition, frequency, presence; (1, 0, 0) changes nothing."""
    penalized: Tensor
    """[p] int64, the entries whose penalties change something."""
    biased: Tensor
    """[n] int64, the entry of each bias,"""
    bias_tokens: Tensor
    """[n] int64, its token, once in an entry,"""
    biases: Tensor
    """[n] float32, and what is added."""
    worded: Tensor
    """[w] int64, the entry of each bad word,"""
    words: Tensor
    """[w, longest word] int32, and its tokens, the last ones last; -1 before shorter words."""
    banned: Tensor
    """[b] int64, the entry of each token that must not be drawn whatever is asked,"""
    banned_tokens: Tensor
    """[b] int64, and the token."""
    longest: int
    """The greatest length of the penalized; 0 where there are none."""


class Logprobs(NamedTuple):
    """Log probabilities (natural) of the raw logits, before temperature and filters."""

    sampled: Tensor
    """[rows] float32, of the sampled token."""
    ranks: Tensor
    """[rows] int32, 1 + the number of tokens with a strictly greater logit."""
    top_ids: Tensor
    """[rows, k] int32, the k greatest, ties to the lowest id."""
    top: Tensor
    """[rows, k] float32."""


class Ops(Protocol):
    """All tensor operations of the data plane; satisfied by modules."""

    def new_kv_cache(
        self,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: dtype,
        *,
        sums: Sums = "pairs",
        device: device | str = "cpu",
    ) -> KVCache:
        """Allocate the keys and values of one layer, zeroed. head_dim is a multiple of 16.

        sums: how attention over it adds products of bfloat16. device: where it lives; a module for
        one kind of device takes no other.
        """

    def copy_blocks(self, cache: KVCache, sources: Tensor, targets: Tensor) -> None:
        """Copy whole blocks inside one layer, in order. sources, targets: [n] int64."""

    def read_kv(self, cache: KVCache, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return (k, v), each [n, kv_heads, head_dim] dtype, at places [n] int64. For tests and
        dumps."""

    def prepare(
        self,
        rows: StepRows,
        known: Tensor,
        block_tables: Tensor,
        block_size: int,
        num_tokens: int,
    ) -> tuple[Tensor, Batch]:
        """Gather what a step computes: (tokens [num_tokens] int32, their Batch).

        known: [num_slots, max_model_len] int32, the tokens of each slot from position 0 on.
        block_tables: [num_slots, max_blocks] int32, contiguous. num_tokens is query_starts[-1], on
        the host since it is a shape: a device does not wait for the host here. Padding rows have
        token 0, position 0, place -1 and kv_len 0. The Batch may share memory with the arguments.
        """

    def store_tokens(self, known: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """Write drawn tokens: known[slots, positions] = max(tokens, 0), all [n] int32, in place.

        Entries with slot -1 are skipped; no two others name the same place. A -1 (logits that were
        not finite) becomes 0: a step planned ahead may read it before that sequence is ended.
        """

    def embed(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Gather rows. tokens: [tokens] int32; weight: [vocab, hidden] dtype -> [tokens,
        hidden]."""

    def pack_linear(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        segments: int = 1,
        is_gated: bool = False,
        sums: Sums = "pairs",
    ) -> PackedLinear:
        """Prepare weight [out, in] (and bias [out]), both float32 or bfloat16, once at load.

        They may be freed after. `segments` cuts K into that many equal parts, each a multiple of 16
        (ValueError otherwise). is_gated: for gated_linear, with one segment; rows are gates, then
        as many ups, a multiple of 16. sums: how products of bfloat16 are added.
        """

    def unpack_linear(self, weight: PackedLinear) -> tuple[Tensor, Tensor | None]:
        """Return the weight [out, in] and the bias [out] that pack_linear took."""

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """Multiply x [tokens, in] dtype -> [tokens, out] dtype.

        The sum over K, in float32, is in the order of `reference.linear`. One segment: bias is
        added, then comes one rounding. More segments: each is rounded to dtype, widened, added by a
        fixed binary tree (neighbours first) in float32, then bias, then one rounding.
        """

    def gated_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """Return silu_mul(linear(x, weight)), bit for bit, of a weight packed with is_gated."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last axis: [tokens, hidden] dtype.

        s = 16-lane sum of x*x; r = 1 / sqrt(s / width + eps); y = (x * r) * weight; one rounding.
        """

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x into residual in place (rounded to dtype), return rms_norm of the rounded sum."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis: [tokens,
        hidden] dtype.

        mean = 16-lane sum of x / width; d = x - mean; s = 16-lane sum of d*d; r = 1 / sqrt(s /
        width + eps); y = ((d * r) * weight) + bias; one rounding.
        """

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """Return layer_norm of x + residual, rounded to dtype; both stay as they are."""

    def qkv_post(
        self,
        qkv: Tensor,
        batch: Batch,
        cos_sin: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        cache: KVCache,
    ) -> Tensor:
        """Split, normalize, rotate, and write keys and values; return q [tokens, heads, head_dim].

        qkv: [tokens, (heads + 2 kv_heads) * head_dim] dtype, order q, k, v. cos_sin:
        [max_positions, head_dim] float32, cosines of the head_dim/2 frequencies, then sines.
        norms: the per-head RMS weights of q and k [head_dim] dtype (Qwen3), or None. Rotation
        pairs element i with i + head_dim/2: (a*cos - b*sin, b*cos + a*sin), on the unrounded norm.
        One rounding at the end. A token whose place is -1 writes nothing.
        """

    def paged_attention(
        self,
        q: Tensor,
        cache: KVCache,
        batch: Batch,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Attention of q [tokens, heads, head_dim] over the cache -> the same shape, dtype.

        A query at position p sees keys max(0, p - window + 1) .. p (window 0: all); where it is not
        causal, which allows no window, all kv_lens keys of its row. Query head h
        reads kv head h // (heads / kv_heads). softcap: scores become softcap * tanh(score /
        softcap) (Gemma 2); 0: they stay. sinks: [heads] float32, the score of one more key of each
        head, always seen, whose value is zero (gpt-oss). The normative order is written in
        `reference.attention`.
        """

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up: [tokens, 2 * width] dtype (gate first) -> [tokens, width].

        silu(x) = x / (1 + exp2(-x * log2(e))), exp2 argument clamped to [-126, 126].
        """

    def gelu(self, x: Tensor) -> Tensor:
        """Return x times the normal distribution function of x (Hendrycks and Gimpel 2016,
        arXiv:1606.08415), by `reference.activation`: [tokens, width] dtype."""

    def edit_logits(self, logits: Tensor, edits: EditRows) -> Tensor:
        """Widen logits [rows, vocab] dtype or float32 -> float32, some of the rows edited.

        Masks, bad words, biases and penalties of `reference.edits`, in this order; -infinity for
        what is banned.
        """

    def sample(self, logits: Tensor, rows: SamplingRows, edits: EditRows | None = None) -> Tensor:
        """Draw one token a row: logits [rows, vocab] dtype or float32 -> [rows] int32.

        With edits, of edit_logits(logits, edits), which need not exist.

        Greedy: the greatest logit, ties to the lowest id. Else argmax over the kept tokens of
        logits / T + Gumbel(seed, index, token), ties to the lowest id. A row with a NaN, or with no
        finite logit, gives -1. Filters, in this order, on x = logits / T: min_p, top_k, top_p;
        top_p sums probabilities in 64-bit integers so that no order of addition exists.
        `reference.sampling`.
        """

    def logprobs(
        self, logits: Tensor, tokens: Tensor, k: int, asked: Tensor | None = None
    ) -> Logprobs:
        """Log probabilities of tokens [rows] int32 and of the k greatest (k may be 0).

        asked: [n] int64, the rows that are told of, the others are zeros; None: all are.
        """
