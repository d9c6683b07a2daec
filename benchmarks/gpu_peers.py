"""What others reach on the same GPU: a compiled PyTorch decoder, transformers, cuBLAS, SDPA.

`python -m quire.benchmarks.gpu_peers [--parts ...] [--deadline S] [--json FILE]`. Random weights in
bfloat16. Figures are printed and written as they come, so that a run that is cut short keeps what
it had; a figure that fails is one line. With `--device cpu` everything runs without graphs or the
compiler, which tests this file alone: times there mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .gpu_shapes import SHAPES, ModelShape, decode_floor_ms, matrices, write_checkpoint

Attention = Literal["gqa", "grouped"]
"""gqa: enable_gqa and any backend. grouped: the heads of a kv head as its queries, not cuDNN."""

PARTS = ("loop", "kernels", "flex", "transformers")
LOOPS = (("qwen3-8b", 1), ("qwen3-8b", 8), ("qwen3-8b", 64), ("qwen3-0.6b", 1))
CONTEXT = 1024
PAD = 64  # attention reads a multiple of it, as one graph serves several lengths
CACHE_ROOM = 1024  # positions of the cache beyond those that are read
ROTATED_BYTES = 300e6  # copies of a weight take so much together: several times the L2
NUM_CALLS = 32  # of attention in a graph: so many that launching it is little
LINEAR_ROWS = (1, 8, 64, 256, 8192)
PREFILLS = (1024, 8192)
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Event: Any = torch.cuda.Event  # its constructor has no types


class LayerWeights(NamedTuple):
    """One layer, bf16. Matrices: [out, in]; caches: [batch, kv_heads, max_len, head_dim]."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    k_cache: Tensor
    v_cache: Tensor


class Place(NamedTuple):
    """A step's: position: [1] int64; mask: [1, 1, 1, length] bool; cos, sin: [head_dim] bf16."""

    position: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor


def free(device: torch.device) -> None:
    """Forget compiled code and give unused memory back."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Warm a call up and return the replay of its graph; without a GPU, the call."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def median_ms(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of a call: between events of the GPU, else by the clock."""
    times = []
    for index in range(rounds + 3):
        begin = time.perf_counter()
        if device.type == "cuda":
            start, end = (Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            took_ms = float(start.elapsed_time(end))
        else:
            call()
            took_ms = (time.perf_counter() - begin) * 1e3
        if index >= 3:  # the first ones warm up
            times.append(took_ms)
    return statistics.median(times)


def graph_us(call: Callable[[int], object], device: torch.device, num_calls: int) -> float:
    """Return a call's share of a graph of several, given their indices: the median of 5 replays."""

    def calls() -> None:
        for index in range(num_calls):
            call(index)

    with torch.no_grad():
        return median_ms(captured(calls, device), device, 5) / num_calls * 1e3


def draw(device: torch.device, *size: int) -> Tensor:
    """Draw numbers for a weight: bf16, of which a row has norm 1."""
    return torch.randn(size, dtype=torch.bfloat16, device=device).mul_(size[-1] ** -0.5)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of the last dimension, in fp32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return wide.to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of the last dimension."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def read_length(context: int) -> int:
    """Return how many positions attention reads: past context, a multiple of PAD."""
    return (context + PAD) // PAD * PAD


def make_layer(shape: ModelShape, length: int, attention: Attention) -> Callable[..., Tensor]:
    """Make the function of one layer and one new token per row, x: [batch, hidden] bf16."""
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim

    def layer(x: Tensor, weights: LayerWeights, place: Place) -> Tensor:
        rows = x.shape[0]
        qkv = functional.linear(norm(x, weights.input_norm), weights.qkv)
        q, k, v = torch.split(qkv.view(rows, -1, head_dim), [heads, kv_heads, kv_heads], 1)
        if shape.qk_norm:
            q, k = norm(q, weights.q_norm), norm(k, weights.k_norm)
        q, k = rotate(q, place.cos, place.sin), rotate(k, place.cos, place.sin)
        weights.k_cache.index_copy_(2, place.position, k.unsqueeze(2))
        weights.v_cache.index_copy_(2, place.position, v.unsqueeze(2))
        mixed = functional.scaled_dot_product_attention(
            q.unsqueeze(2) if attention == "gqa" else q.view(rows, kv_heads, -1, head_dim),
            weights.k_cache[:, :, :length],
            weights.v_cache[:, :, :length],
            attn_mask=place.mask,
            enable_gqa=attention == "gqa" and heads != kv_heads,
        )
        x = x + functional.linear(mixed.reshape(rows, -1), weights.o)
        gate_up = functional.linear(norm(x, weights.post_norm), weights.gate_up)
        gate, up = gate_up.chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, weights.down)

    return layer


def make_weights(shape: ModelShape, batch: int, max_len: int, device: torch.device) -> LayerWeights:
    """Draw one layer's tensors; the cache is full of keys and values."""
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return LayerWeights(
        input_norm=draw(device, shape.hidden).add_(1),
        qkv=draw(device, heads + 2 * kv, shape.hidden),
        q_norm=draw(device, shape.head_dim).add_(1),
        k_norm=draw(device, shape.head_dim).add_(1),
        o=draw(device, shape.hidden, heads),
        post_norm=draw(device, shape.hidden).add_(1),
        gate_up=draw(device, 2 * shape.intermediate, shape.hidden),
        down=draw(device, shape.hidden, shape.intermediate),
        k_cache=draw(device, batch, shape.kv_heads, max_len, shape.head_dim),
        v_cache=draw(device, batch, shape.kv_heads, max_len, shape.head_dim),
    )


class Loop:
    """A plain decoder with a static cache, of which every layer is the same compiled function.

    The cache holds random keys and values; each step writes at position context.
    """

    def __init__(
        self,
        shape: ModelShape,
        batch: int,
        context: int,
        device: torch.device,
        layer: Callable[..., Tensor],
    ) -> None:
        length = read_length(context)
        max_len = length + CACHE_ROOM
        self._layer = layer
        self.layers = [make_weights(shape, batch, max_len, device) for _ in range(shape.layers)]
        self.embedding = draw(device, shape.vocab, shape.hidden)
        self.head = self.embedding if shape.tied else draw(device, shape.vocab, shape.hidden)
        self.final_norm = draw(device, shape.hidden).add_(1)
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.position = torch.full((1,), context, dtype=torch.int64, device=device)
        self._positions = torch.arange(length, device=device)
        half = torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim
        angles = torch.arange(max_len, device=device)[:, None] / shape.rope_theta ** half.float()
        angles = torch.cat((angles, angles), -1)
        self._cos, self._sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def logits(self) -> Tensor:
        """Return logits of the tokens that are set: [batch, vocab] bf16."""
        place = Place(
            self.position,
            (self._positions <= self.position).view(1, 1, 1, -1),
            self._cos.index_select(0, self.position)[0],
            self._sin.index_select(0, self.position)[0],
        )
        x = functional.embedding(self.tokens, self.embedding)
        for weights in self.layers:
            x = self._layer(x, weights, place)
        return functional.linear(norm(x, self.final_norm), self.head)

    def step(self) -> None:
        """Set tokens to the likeliest ones after those that are set."""
        self.tokens.copy_(self.logits().argmax(-1))


def compiled_loop_ms(
    shape: ModelShape,
    batch: int,
    context: int,
    device: torch.device,
    *,
    attention: Attention = "gqa",
    compiled: bool | None = None,
) -> dict[str, float]:
    """Time a decode step: the median of 20 replays of its graph, beside the least time.

    compiled: by default, on a GPU. compile_s: the first step, which compiles and runs once.
    """
    free(device)
    layer = make_layer(shape, read_length(context), attention)
    if device.type == "cuda" if compiled is None else compiled:
        layer = torch.compile(layer, dynamic=False, fullgraph=True)
    backends = NOT_CUDNN if attention == "grouped" else [*NOT_CUDNN, SDPBackend.CUDNN_ATTENTION]
    with torch.no_grad(), sdpa_kernel(backends):
        loop = Loop(shape, batch, context, device, layer)
        synchronize(device)
        start = time.perf_counter()
        loop.step()
        synchronize(device)
        compile_s = time.perf_counter() - start
        ms = median_ms(captured(loop.step, device), device, 20)
        assert bool(torch.isfinite(loop.logits()).all()), "logits are not finite"
    floor_ms = decode_floor_ms(shape, batch, context)
    return {"ms": ms, "compile_s": compile_s, "floor_ms": floor_ms, "share": floor_ms / ms}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0 if math.isinf(seconds) else max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def transformers_ms(
    shape: ModelShape,
    batch: int,
    context: int,
    num_tokens: int,
    device: torch.device,
    *,
    deadline_s: float = math.inf,
) -> dict[str, float]:
    """Time a token of transformers' `generate` with a static cache, which compiles on a GPU.

    The figure is the difference between num_tokens and a quarter of them, least of two runs each.
    Prints what is known on the way. Raises TimeoutError after deadline_s.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    few = num_tokens // 4
    make_model: Any = AutoModelForCausalLM.from_config
    free(device)
    with time_limit(deadline_s), torch.no_grad():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(shape, Path(folder))
            config = AutoConfig.from_pretrained(folder)
        with device:
            model = make_model(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        model.generation_config.eos_token_id = None  # none stops early, and nothing looks for it
        ids = torch.randint(10, shape.vocab - 10, (batch, context), device=device)
        static: Any = {"cache_implementation": "static", "do_sample": False, "pad_token_id": 0}
        generate = partial(model.generate, ids, attention_mask=torch.ones_like(ids), **static)

        def seconds(count: int) -> float:
            synchronize(device)
            start = time.perf_counter()
            out = generate(min_new_tokens=count, max_new_tokens=count)
            synchronize(device)
            assert out.shape == (batch, context + count), (out.shape, count)
            took = time.perf_counter() - start
            print(f"    {count} tokens: {took:.3f} s, {took / count * 1e3:.3f} ms each", flush=True)
            return took

        # The longest first: the cache keeps its size, so that the others do not compile again.
        first_s = seconds(num_tokens)
        seconds(few)
        runs = [(seconds(few), seconds(num_tokens)) for _ in range(2)]
    few_s, many_s = (min(column) for column in zip(*runs, strict=True))
    ms = (many_s - few_s) / (num_tokens - few) * 1e3
    return {"ms": ms, "with_prefill_ms": many_s / num_tokens * 1e3, "first_run_s": first_s}


def linear_us(rows: int, out: int, width: int, device: torch.device) -> float:
    """Time F.linear of [rows, width] by [out, width] bf16, the weight not in the L2."""
    num_copies = math.ceil(ROTATED_BYTES / (2 * out * width)) if device.type == "cuda" else 2
    weights = [draw(device, out, width) for _ in range(num_copies)]
    x = torch.randn(rows, width, device=device).bfloat16()
    num_calls = max(8, num_copies) * (1 if rows > 1024 else 4)
    return graph_us(lambda i: functional.linear(x, weights[i % num_copies]), device, num_calls)


def make_heads(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> list[Tensor]:
    """Make q, k and v of one sequence: [1, heads or kv_heads, tokens, head_dim] bf16."""

    # As a model has them: tokens lie behind one another, heads within a token.
    return [
        torch.randn(1, tokens, count, head_dim, device=device).bfloat16().transpose(1, 2)
        for count in (heads, kv_heads, kv_heads)
    ]


def sdpa_us(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> dict[str, float | str]:
    """Time causal attention of a prompt by each backend of SDPA; a text where one fails."""
    q, k, v = make_heads(tokens, heads, kv_heads, head_dim, device)

    call = partial(functional.scaled_dot_product_attention, is_causal=True)
    call = partial(call, q, k, v, enable_gqa=heads != kv_heads)
    times: dict[str, float | str] = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                times[name] = graph_us(lambda _: call(), device, NUM_CALLS)
        except Exception as error:
            times[name] = f"FAILED: {type(error).__name__}: {error}"[:300]
    return times


def flex_us(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device, *, compiled: bool
) -> dict[str, float]:
    """Time causal attention of a prompt by FlexAttention; also the seconds of compiling it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    free(device)
    q, k, v = make_heads(tokens, heads, kv_heads, head_dim, device)
    mask = create_block_mask(causal, None, None, tokens, tokens, device=device)
    run: Any = torch.compile(flex_attention, dynamic=False, disable=not compiled)
    call = partial(run, q, k, v, block_mask=mask, enable_gqa=heads != kv_heads)
    with torch.no_grad():
        start = time.perf_counter()
        call()
        synchronize(device)
        compile_s = time.perf_counter() - start
    return {"us": graph_us(lambda _: call(), device, NUM_CALLS), "compile_s": compile_s}


class Report:
    """Figures, printed and written as they come; none begins after the deadline."""

    def __init__(self, device: torch.device, path: Path | None, deadline_s: float) -> None:
        self._path = path
        self._start = time.perf_counter()
        self._deadline_s = deadline_s
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
        self._figures: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__}

    @property
    def left_s(self) -> float:
        """Seconds to the deadline."""
        return self._deadline_s - (time.perf_counter() - self._start)

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure, print and write; an exception is a figure too."""
        if self.left_s <= 0:
            print(f"{name}: skipped, after the deadline", flush=True)
            return
        try:
            figure = measure()
        except Exception as error:
            figure = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        self._figures[name] = figure
        if self._path:
            self._path.write_text(json.dumps(self._figures, indent=1))
        shown = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in figure.items())
        print(
            f"[{time.perf_counter() - self._start:6.1f} s] {name}: {', '.join(shown)}", flush=True
        )


def measure_linears(shape: ModelShape, rows: int, device: torch.device) -> dict[str, Any]:
    """Return the microseconds of a model's products."""
    return {
        name: linear_us(rows, *size, device)
        for name, size in matrices(shape).items()
        if name != "head" or rows < LINEAR_ROWS[-1]  # only last tokens have logits
    }


def measure_part(part: str, report: Report, device: torch.device, chosen: list[Attention]) -> None:
    """Run one part; shapes are tiny without a GPU."""
    shapes = {name: SHAPES[name] for name, _ in LOOPS}
    context, prefills, on_gpu = CONTEXT, PREFILLS, device.type == "cuda"
    if not on_gpu:
        context, prefills = 70, (64, 128)
        for name, shape in shapes.items():
            fewer = shape._replace(vocab=512, hidden=256, intermediate=512, layers=2)
            shapes[name] = fewer._replace(heads=4, kv_heads=2, head_dim=64)
    large, small = shapes["qwen3-8b"], shapes["qwen3-0.6b"]
    sizes = large.heads, large.kv_heads, large.head_dim
    match part:
        case "loop":
            for attention, (name, batch) in product(chosen, LOOPS):
                call = partial(compiled_loop_ms, shapes[name], batch, context, device)
                call = partial(call, attention=attention)
                report.add(f"loop {name} batch {batch} {attention}", call)
        case "kernels":
            for shape, rows in product((large, small), LINEAR_ROWS if on_gpu else (1, 8)):
                call = partial(measure_linears, shape, rows, device)
                report.add(f"linear us {shape.name} {rows} rows", call)
            for tokens in prefills:
                report.add(
                    f"sdpa us {large.name} {tokens}", partial(sdpa_us, tokens, *sizes, device)
                )
        case "flex":
            for tokens in prefills:
                call = partial(flex_us, tokens, *sizes, device, compiled=on_gpu)
                report.add(f"flex {large.name} {tokens}", call)
        case "transformers":
            call = partial(transformers_ms, small, 1, context, 128, device)
            call = partial(call, deadline_s=report.left_s)
            report.add(f"transformers {small.name} batch 1", call)


def main() -> None:
    """Parse options and run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--attention", default=",".join(get_args(Attention)), help="of the loop")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds from the start")
    options = parser.parse_args()
    parts, attentions = options.parts.split(","), options.attention.split(",")
    if not (set(parts) <= set(PARTS) and set(attentions) <= set(get_args(Attention))):
        parser.error(f"--parts are of {PARTS}, --attention of {get_args(Attention)}")
    report = Report(options.device, options.json, options.deadline)
    for part in parts:
        measure_part(part, report, options.device, attentions)


if __name__ == "__main__":
    main()
