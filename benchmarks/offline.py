"""Offline generation against transformers' `generate`, CPU time with one thread, in one run.

A ~125 M-parameter Qwen3 shape with random weights in bfloat16; the law is on, as always. Each
workload runs alternately on both engines; the ratio is transformers' median CPU seconds over
Quire's. Cached prefixes are dropped before every run. Prints a table, and JSON with --json FILE.
The goals are those of bfloat16; where a processor has no instructions for it torch is twenty times
slower than in float32, and --dtype float32 is the comparison that says something.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.llm import LLM
from ..engine.params import SamplingParams

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Workload:
    """What is asked of both engines, and the ratio to reach."""

    name: str
    num_requests: int
    num_shared: int
    num_own: int
    num_output: int
    goal: float

    def prompts(self, seed: int) -> list[list[int]]:
        """Random token ids: num_shared common ones, then num_own of each request's own."""
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> list[int]:
            return torch.randint(10, 31990, (count,), generator=generator).tolist()

        shared = draw(self.num_shared)
        return [shared + draw(self.num_own) for _ in range(self.num_requests)]


WORKLOADS = (
    Workload("32 requests, 128 in, 128 out", 32, 0, 128, 128, 3.0),
    Workload("1 request, 32 in, 128 out", 1, 0, 32, 128, 3.4),
    Workload("1,024-token prompt, first token", 1, 0, 1024, 1, 1.5),
    Workload("16 requests, 512 of 544 shared, 32 out", 16, 512, 32, 32, 10.5),
)


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of all threads of this process while call runs."""
    start = time.process_time()
    call()
    return time.process_time() - start


def make_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """Write the shape's config.json and return transformers' model of it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SHAPE)
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = dtype
    config.save_pretrained(folder)
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    return model.to(dtype).eval()


def measure(workload: Workload, peer: Any, llm: LLM, num_runs: int) -> dict[str, Any]:
    """Run both engines in turn; return their seconds and the ratio of the medians."""
    params = SamplingParams(
        temperature=0.0, max_tokens=workload.num_output, ignore_eos=True, detokenize=False
    )
    peer_s, quire_s = [], []
    for run in range(num_runs + 1):
        prompts = workload.prompts(run)
        ids = torch.tensor(prompts)
        llm.reset_prefix_cache()

        def generate_quire(prompts: list[list[int]] = prompts) -> None:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert all(len(o.outputs[0].token_ids) == workload.num_output for o in outputs)

        def generate_peer(ids: torch.Tensor = ids) -> None:
            with torch.inference_mode():
                out = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=workload.num_output,
                    max_new_tokens=workload.num_output,
                    pad_token_id=0,
                )
            assert out.shape[1] == ids.shape[1] + workload.num_output

        seconds = cpu_seconds(generate_quire), cpu_seconds(generate_peer) if peer else 0.0
        if run:  # the first run warms both up
            quire_s.append(seconds[0])
            peer_s.append(seconds[1])
    ratio = statistics.median(peer_s) / statistics.median(quire_s)
    return {**asdict(workload), "quire_s": quire_s, "transformers_s": peer_s, "ratio": ratio}


def main() -> None:
    """Parse options, run all workloads, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help="Quire only, without the peer")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--only", type=int, help="one workload, by its index")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = WORKLOADS if options.only is None else WORKLOADS[options.only : options.only + 1]
    with tempfile.TemporaryDirectory() as folder:
        peer = make_transformers(Path(folder), getattr(torch, options.dtype))
        llm = LLM(
            folder,
            load_format="dummy",
            dtype=options.dtype,
            skip_tokenizer_init=True,
            num_threads=1,
            block_size=options.block_size,
            num_kv_blocks=16384 // options.block_size,
        )
        rows = []
        for workload in chosen:
            row = measure(workload, None if options.alone else peer, llm, options.runs)
            rows.append(row)
            quire, other = (statistics.median(row[k]) for k in ("quire_s", "transformers_s"))
            print(
                f"{workload.name:42} quire {quire:7.3f} s  transformers {other:7.3f} s  "
                f"ratio {row['ratio']:5.2f} (goal {workload.goal})",
                flush=True,
            )
        llm.close()
    if options.json:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1}
        report = {"machine": machine, "versions": versions, "shape": SHAPE}
        report |= {"dtype": options.dtype, "workloads": rows}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
