"""How often a draft model draws what its target draws, with one noise for both.

No way of drawing two tokens from two distributions makes them equal more often than 1 - TV, their
total variation distance; rejection samplers accept that often, and need a second draw where they
do not. Here both take the argmax with the same noise. Along answers that the demo model draws at
some temperatures, 1-layer drafter beside it: the share of equal tokens, 1 - TV, and
(1 - TV) / (1 + TV), which drawing with one noise never falls below (Daliri et al. 2024).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from ..demo import tasks
from ..engine.config import DEMO_MODEL
from ..engine.llm import LLM
from ..engine.models.loader import load_weights
from ..engine.models.registry import read_model_config
from ..engine.opset import choose_ops, choose_sums
from ..engine.params import SamplingParams
from ..reference.decoder import logits
from ..reference.ops import SamplingRows
from .speculation import examples


def rows_of(count: int, temperature: float, seed: int) -> SamplingRows:
    """Draw outputs 0, 1, .. of one request."""
    return SamplingRows(
        temperature=torch.full((count,), temperature),
        top_k=torch.zeros(count, dtype=torch.int32),
        top_p=torch.ones(count),
        min_p=torch.zeros(count),
        seeds=torch.full((count,), seed),
        indices=torch.arange(count, dtype=torch.int32),
    )


def main() -> None:
    """Measure at some temperatures and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.7, 1.0, 1.5])
    parser.add_argument("--seeds", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reference, drawing = choose_ops("cpu", "reference"), choose_ops("cpu", "kernels")
    models = []
    for path in (DEMO_MODEL, DEMO_MODEL / "drafter"):
        config = read_model_config(path, sums=choose_sums("auto"))
        models.append((config.decoder, load_weights(config, reference, progress=False)))
    found = {}
    with LLM() as llm:
        kinds = (tasks.extract_fields, 1), (tasks.list_sums, 0), (tasks.finish_story, 0)
        prompts = [one for draw, shots in kinds for one in examples(llm, draw, shots)[:6]]
        for temperature in options.temperatures:
            equal, overlap, floor = [], [], []
            for number, prompt in enumerate(prompts):
                for seed in range(options.seeds):
                    params = SamplingParams(
                        temperature=temperature, seed=100 * number + seed, max_tokens=64
                    )
                    (output,) = llm.generate([prompt], params, use_tqdm=False)
                    answer = list(output.outputs[0].token_ids)
                    tokens = torch.tensor([*prompt, *answer], dtype=torch.int32)
                    rows = rows_of(len(answer), temperature, 100 * number + seed)
                    first = len(prompt) - 1
                    both = [logits(*model, tokens[:-1])[first:] for model in models]
                    drawn = [drawing.sample(one, rows) for one in both]
                    assert drawn[0].tolist() == answer, "the target draws what it drew"
                    equal.append((drawn[0] == drawn[1]).float())
                    shared = overlap_of(both[0], both[1], temperature)
                    overlap.append(shared)
                    floor.append(shared / (2.0 - shared))
            means = [float(torch.cat(parts).mean()) for parts in (equal, overlap, floor)]
            names = ("equal", "one_minus_tv", "floor")
            found[str(temperature)] = dict(zip(names, means, strict=True)) | {
                "tokens": sum(map(len, equal))
            }
            print(
                f"T {temperature}: {means[0]:.3f} drawn alike, 1 - TV {means[1]:.3f}, at least "
                f"{means[2]:.3f}, of {found[str(temperature)]['tokens']} tokens"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def overlap_of(target: Tensor, draft: Tensor, temperature: float) -> Tensor:
    """Return 1 - TV of each row: [rows]."""
    p, q = ((one.double() / temperature).softmax(dim=1) for one in (target, draft))
    return torch.minimum(p, q).sum(dim=1).float()


if __name__ == "__main__":
    main()
