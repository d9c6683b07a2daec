"""Small inputs on which every implementation of Ops has the same bits: what `check` runs.

Sums are of numbers for which no order and no rounding matters: small integers, roots that are
powers of two, scores that are integers as powers of two. What has no sums takes any numbers. Each
case is a function of (ops, device, shape) that returns tensors; a case never looks at the other
implementation. Two cases of any numbers return whether the law holds, which the reference keeps.
Pure but for memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...reference.activation import LOG2_E
from ...reference.ops import Batch, EditRows, Ops, SamplingRows, StepRows
from ...reference.sums import Sums

Device = torch.device


class Shape(NamedTuple):
    """What kernels are made for."""

    dtype: torch.dtype
    head_dim: int
    group: int
    """Query heads of a kv head."""
    block_size: int
    sums: Sums = "pairs"
    vocab: int = 700
    """Of what is sampled from."""

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}, head_dim {self.head_dim}, group {self.group}, blocks of {self.block_size}"


Run = Callable[[Ops, Device, Shape], tuple[Tensor, ...]]


class Case(NamedTuple):
    """One operation in one situation."""

    op: str
    situation: str
    run: Run


KV_HEADS = 2
TOKENS = 9


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _integers(seed: int, most: int, *shape: int) -> Tensor:
    """Integers of up to `most` in magnitude, float32."""
    return torch.randint(-most, most + 1, shape, generator=_generator(seed)).float()


def _signs(seed: int, *shape: int) -> Tensor:
    """Numbers 1 and -1, float32."""
    return torch.randint(0, 2, shape, generator=_generator(seed)).float() * 2 - 1


def _ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def prepare(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Rows of several lengths, and padding."""
    size, max_blocks = shape.block_size, 6
    known = torch.randint(0, 999, (4, max_blocks * size), generator=_generator(1))
    tables = torch.randperm(4 * max_blocks, generator=_generator(2)).view(4, max_blocks)
    counts = [1, 4 * size, 1, 2, 1]
    rows = StepRows(
        _ints([2, 0, -1, 3, -1]).to(device),
        _ints([size, size - 1, 0, 0, 0]).to(device),
        _ints([0, *counts]).cumsum(0, dtype=torch.int32).to(device),
    )
    known_there, tables_there = known.int().to(device), tables.int().to(device)
    tokens, batch = ops.prepare(rows, known_there, tables_there, size, sum(counts))
    return tokens, batch.positions, batch.places, batch.kv_lens, batch.query_starts, batch.slots


def store_tokens(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """A token, one that is none, and padding."""
    known = torch.full((4, 5), 7, dtype=torch.int32, device=device)
    slots, positions, tokens = _ints([3, -1, 0]), _ints([4, 0, 2]), _ints([11, 12, -1])
    ops.store_tokens(known, slots.to(device), positions.to(device), tokens.to(device))
    return (known,)


def embed(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """A few rows."""
    weight = torch.randn((50, 96), generator=_generator(3)).to(shape.dtype)
    return (ops.embed(_ints([49, 0, 7, 7]).to(device), weight.to(device)),)


def copy_blocks(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Copies that follow one another."""
    size, head_dim = shape.block_size, shape.head_dim
    cache = ops.new_kv_cache(
        5, size, KV_HEADS, head_dim, shape.dtype, sums=shape.sums, device=device
    )
    count = 5 * size
    batch = _batch_of_places(torch.arange(count), device)
    qkv = torch.randn((count, 3 * KV_HEADS * head_dim), generator=_generator(4)).to(shape.dtype)
    turns = torch.ones((1, head_dim), device=device)
    turns[:, head_dim // 2 :] = 0.0
    ops.qkv_post(qkv.to(device), batch, turns, None, 0.0, cache)
    sources, targets = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 4])
    ops.copy_blocks(cache, sources.to(device), targets.to(device))
    return ops.read_kv(cache, torch.arange(count).to(device))


def linear(rows: int, segments: int, *, biased: bool) -> Run:
    """Small integers: sums stay below 2^24, and are rounded once."""

    def run(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
        x = _integers(5, 3, rows, 192).to(shape.dtype).to(device)
        weight = _integers(6, 4, 80, 192).to(shape.dtype).to(device)
        bias = _integers(7, 8, 80).to(shape.dtype).to(device) if biased else None
        packed = ops.pack_linear(weight, bias, segments=segments, sums=shape.sums)
        return (ops.linear(x, packed),)

    return run


def linear_alone(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Whether rows of any numbers keep their bits whatever number of rows is multiplied."""
    x = torch.randn((600, 192), generator=_generator(28)).to(shape.dtype).to(device)
    weight = torch.randn((80, 192), generator=_generator(29)).to(shape.dtype).to(device)
    packed = ops.pack_linear(weight, None, sums=shape.sums)
    whole = ops.linear(x, packed)
    counts = (1, 2, 16, 17, 40, 65, 130, 300)
    return (torch.tensor([torch.equal(ops.linear(x[:n], packed), whole[:n]) for n in counts]),)


def gated_linear(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Small integers before the gate."""
    x = _integers(5, 3, TOKENS, 192).to(shape.dtype).to(device)
    weight = _integers(6, 1, 160, 192).to(shape.dtype).to(device)
    packed = ops.pack_linear(weight, None, is_gated=True, sums=shape.sums)
    return (ops.gated_linear(x, packed),)


def rms_norm(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Entries of 2 or -2 with eps 12: the root is 4."""
    x = 2 * _signs(8, TOKENS, 160).to(shape.dtype).to(device)
    return (ops.rms_norm(x, _integers(9, 6, 160).to(shape.dtype).to(device), 12.0),)


def add_rms_norm(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Sums of 2 or -2."""
    total = 2 * _signs(10, TOKENS, 160)
    x = _integers(11, 5, TOKENS, 160)
    residual = (total - x).to(shape.dtype).to(device)
    weight = _integers(12, 6, 160).to(shape.dtype).to(device)
    return ops.add_rms_norm(x.to(shape.dtype).to(device), residual, weight, 0.0), residual


def _balanced(seed: int, width: int) -> Tensor:
    """Rows of as many 1 as -1, float32, each moved by an integer: that is the row's mean."""
    half = _signs(seed, TOKENS, width // 2)
    return torch.cat((half, -half), 1) + _integers(seed + 1, 3, TOKENS, 1)


def layer_norm(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Entries of 2 or -2 beside the mean with eps 12: the root is 4."""
    x = 2 * _balanced(32, 160).to(shape.dtype).to(device)
    weight, bias = (_integers(seed, 6, 160).to(shape.dtype).to(device) for seed in (34, 35))
    return (ops.layer_norm(x, weight, bias, 12.0),)


def add_layer_norm(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Sums of 2 or -2 beside the mean; what is added stays as it is."""
    x = _integers(36, 5, TOKENS, 160)
    residual = (2 * _balanced(37, 160) - x).to(shape.dtype).to(device)
    weight, bias = (_integers(seed, 6, 160).to(shape.dtype).to(device) for seed in (39, 40))
    x = x.to(shape.dtype).to(device)
    return ops.add_layer_norm(x, residual, weight, bias, 0.0), x, residual


def _batch_of_places(places: Tensor, device: Device) -> Batch:
    """A batch for qkv_post, which reads positions and places only."""
    none = torch.zeros(0, dtype=torch.int32, device=device)
    positions = (torch.arange(len(places)) % 1).int().to(device)
    return Batch(positions, places.to(device), none, none, none, none)


def qkv_post(*, normed: bool) -> Run:
    """Entries of 1 or -1, a table of halves, and one token that is written nowhere."""

    def run(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
        head_dim, size = shape.head_dim, shape.block_size
        heads = (shape.group + 2) * KV_HEADS
        qkv = _signs(13, TOKENS, heads * head_dim).to(shape.dtype).to(device)
        table = (_integers(14, 4, 20, head_dim) / 4).to(device)
        norms = None
        if normed:
            q_norm, k_norm = (_integers(seed, 6, head_dim).to(shape.dtype) for seed in (15, 16))
            norms = q_norm.to(device), k_norm.to(device)
        num_blocks = -(-2 * TOKENS // size)
        cache = ops.new_kv_cache(
            num_blocks, size, KV_HEADS, head_dim, shape.dtype, sums=shape.sums, device=device
        )
        places = torch.randperm(num_blocks * size, generator=_generator(17))[:TOKENS]
        places[4] = -1
        positions = torch.randint(0, 20, (TOKENS,), generator=_generator(18)).int()
        batch = _batch_of_places(places, device)._replace(positions=positions.to(device))
        q = ops.qkv_post(qkv, batch, table, norms, 0.0, cache)
        return q, *ops.read_kv(cache, torch.arange(num_blocks * size).to(device))

    return run


def attention(rows: list[tuple[int, int]], window: int = 0, *, causal: bool = True) -> Run:
    """Rows of (queries, keys), of scores that are small integers as powers of two."""

    def run(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
        head_dim, size = shape.head_dim, shape.block_size
        counts, kv_lens = [queries for queries, _ in rows], [keys for _, keys in rows]
        max_blocks = -(-max(kv_lens) // size)
        tables = torch.randperm(len(rows) * max_blocks, generator=_generator(19))
        tables = tables.view(len(rows), max_blocks)
        num_places = tables.numel() * size
        cache = ops.new_kv_cache(
            tables.numel(), size, KV_HEADS, head_dim, shape.dtype, sums=shape.sums, device=device
        )
        _write(ops, cache, num_places, device, shape)
        q = torch.zeros((sum(counts), KV_HEADS * shape.group, head_dim))
        at = torch.rand(q.shape, generator=_generator(22)).argsort(-1)[..., :3]
        q = q.scatter(-1, at, _signs(23, *at.shape)).to(shape.dtype).to(device)
        batch = _batch(rows, tables, device)
        options: dict[str, Any] = {"scale": 1.0 / LOG2_E, "window": window, "causal": causal}
        return (ops.paged_attention(q, cache, batch, **options),)

    return run


def _batch(rows: list[tuple[int, int]], tables: Tensor, device: Device) -> Batch:
    """A batch for paged_attention of (queries, keys). tables: [rows, max_blocks]."""
    counts = [queries for queries, _ in rows]
    return Batch(
        positions=torch.cat([torch.arange(k - n, k) for n, k in rows]).int().to(device),
        places=torch.zeros(sum(counts), dtype=torch.int64, device=device),
        query_starts=_ints([0, *counts]).cumsum(0, dtype=torch.int32).to(device),
        kv_lens=_ints([keys for _, keys in rows]).to(device),
        slots=_ints(list(range(len(rows)))).to(device),
        block_tables=tables.int().to(device),
    )


def attention_alone(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Whether tokens of any numbers have their bits in a chunk, in a smaller one, and alone."""
    num_blocks = -(-300 // shape.block_size)
    tables = torch.randperm(num_blocks, generator=_generator(30)).view(1, -1)
    cache = ops.new_kv_cache(
        num_blocks,
        shape.block_size,
        KV_HEADS,
        shape.head_dim,
        shape.dtype,
        sums=shape.sums,
        device=device,
    )
    _write(ops, cache, num_blocks * shape.block_size, device, shape)
    q = torch.randn((40, KV_HEADS * shape.group, shape.head_dim), generator=_generator(31))
    q = q.to(shape.dtype).to(device)

    def attend(first: int, end: int) -> Tensor:
        batch = _batch([(end - first, 260 + end)], tables, device)
        return ops.paged_attention(q[first:end], cache, batch, scale=0.1)

    whole = attend(0, 40)
    parts = ((39, 40), (0, 1), (20, 23), (3, 40))
    return (torch.tensor([torch.equal(attend(*p), whole[slice(*p)]) for p in parts]),)


def _write(ops: Ops, cache: object, num_places: int, device: Device, shape: Shape) -> None:
    """Fill a cache: keys of -2 .. 2, values of -4 .. 4, by a rotation that turns nothing."""
    head_dim = shape.head_dim
    turns = torch.cat((torch.ones(1, head_dim // 2), torch.zeros(1, head_dim // 2)), 1)
    width = KV_HEADS * head_dim
    qkv = torch.cat(
        (
            torch.zeros(num_places, shape.group * width),
            _integers(20, 2, num_places, width),
            _integers(21, 4, num_places, width),
        ),
        1,
    )
    batch = _batch_of_places(torch.arange(num_places), device)
    ops.qkv_post(
        qkv.to(shape.dtype).to(device),
        batch,
        turns.to(device),
        None,
        0.0,
        cache,  # type: ignore[arg-type]  # of the same ops
    )


def silu_mul(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Any numbers, great ones too."""
    x = torch.randn((TOKENS, 2 * 96), generator=_generator(24)) * 5
    x[0, :4] = torch.tensor([-300.0, 300.0, -0.0, 88.0])
    return (ops.silu_mul(x.to(shape.dtype).to(device)),)


def gelu(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Any numbers, great ones too."""
    x = torch.randn((TOKENS, 96), generator=_generator(41)) * 3
    x[0, :4] = torch.tensor([-300.0, 300.0, -0.0, -13.0])
    return (ops.gelu(x.to(shape.dtype).to(device)),)


def _rows(device: Device) -> SamplingRows:
    """Greedy, plain, and each filter alone and together."""
    rows = SamplingRows(
        temperature=torch.tensor([0.0, 1.0, 0.7, 1.3, 2.0, 0.8]),
        top_k=_ints([0, 0, 20, 0, 0, 50]),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.9, 1.0, 0.8]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1, 0.01]),
        seeds=torch.tensor([0, 1, -1, 2**62 + 3, -(2**63), 5]),
        indices=_ints([0, 0, 3, 100, 2, 70000]),
    )
    return SamplingRows(*(part.to(device) for part in rows))


def _logits(shape: Shape) -> Tensor:
    return (torch.randn((6, shape.vocab), generator=_generator(25)) * 3).to(shape.dtype)


def edit_logits(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Four of six rows: a mask, biases, a bad word that comes and one that does not, penalties."""
    known = torch.randint(0, 9, (5, 40), generator=_generator(26)).int()
    known[4, 17:19] = _ints([3, 5])
    entries = torch.tensor([0, 2, 2, 3, 3])
    edits = EditRows(
        known=known,
        rows=torch.tensor([0, 2, 3, 5]),
        slots=torch.tensor([1, 3, 4, 0]),
        lengths=torch.tensor([30, 7, 19, 40]),
        prompts=torch.tensor([3, 7, 9, 1]),
        masked=torch.tensor([1]),
        denied=(torch.arange(shape.vocab) % 3 == 1)[None],
        penalties=torch.tensor([[1.2, 0.0, 0.0], [1.0, 0.0, 0.0], [0.9, 0.3, -0.2], [1, 0.4, 1]]),
        penalized=torch.tensor([0, 2, 3]),
        biased=entries,
        bias_tokens=torch.tensor([7, 3, 4, 0, 1]),
        biases=torch.tensor([1.5, -2.25, 100.0, 0.1, -0.1]),
        worded=torch.tensor([2, 2]),
        words=_ints([-1, 3, 5, 8, 3, 4, 5, 9]).view(2, 4),
        banned=torch.tensor([1, 3]),
        banned_tokens=torch.tensor([3, 4]),
        longest=40,
    )
    there: dict[str, Any] = {
        name: part.to(device) for name, part in edits._asdict().items() if isinstance(part, Tensor)
    }
    logits, edits = _logits(shape).to(device), edits._replace(**there)
    return ops.edit_logits(logits, edits), ops.sample(logits, _rows(device), edits)


def sample(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Every filter; a row with a NaN."""
    logits = torch.cat((_logits(shape), _logits(shape)))
    logits[6:] = logits[6:].flip(1)
    logits[9, 5] = torch.nan
    rows = _rows(device)
    twice = SamplingRows(*(torch.cat((part, part)) for part in rows))
    return (ops.sample(logits.to(device), twice),)


def logprobs(ops: Ops, device: Device, shape: Shape) -> tuple[Tensor, ...]:
    """Of tokens likely and not, and the five best."""
    tokens = _ints([0, 1, 2, 3, shape.vocab - 1, 4]).to(device)
    return tuple(ops.logprobs(_logits(shape).to(device), tokens, 5))


SHORT = (
    Case("prepare", "padding", prepare),
    Case("store_tokens", "padding", store_tokens),
    Case("embed", "4 rows", embed),
    Case("linear", "1 row", linear(1, 1, biased=False)),
    Case("gated_linear", "9 rows", gated_linear),
    Case("rms_norm", "9 rows", rms_norm),
    Case("add_rms_norm", "9 rows", add_rms_norm),
    Case("qkv_post", "plain", qkv_post(normed=False)),
    Case("paged_attention", "decode", attention([(1, 300), (1, 70)])),
    Case("paged_attention", "prefill", attention([(20, 20), (3, 90)])),
    Case("silu_mul", "9 rows", silu_mul),
    Case("sample", "all filters", sample),
    Case("edit_logits", "all edits", edit_logits),
)
"""A fraction of a second, compiling apart."""
ENCODER = (
    Case("layer_norm", "9 rows", layer_norm),
    Case("add_layer_norm", "9 rows", add_layer_norm),
    Case("paged_attention", "both ways", attention([(20, 20), (150, 150), (1, 1)], causal=False)),
    Case("gelu", "9 rows", gelu),
)
"""What no decoder computes."""
FULL = (
    *SHORT,
    *ENCODER,
    Case("copy_blocks", "a chain", copy_blocks),
    Case("linear", "17 rows, bias", linear(17, 1, biased=True)),
    Case("linear", "33 rows, 2 segments", linear(33, 2, biased=True)),
    Case("linear", "100 rows", linear(100, 1, biased=False)),
    Case("linear", "513 rows", linear(513, 1, biased=True)),
    Case("linear", "alone or with others", linear_alone),
    Case("qkv_post", "with norms", qkv_post(normed=True)),
    Case("paged_attention", "window", attention([(1, 280), (4, 60), (1, 9)], window=50)),
    Case("paged_attention", "mixed", attention([(70, 70), (1, 257), (2, 300), (1, 1)])),
    Case("paged_attention", "alone or in chunks", attention_alone),
    Case("logprobs", "the five best", logprobs),
)
"""A few seconds."""
