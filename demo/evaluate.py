"""Measures the exported demo model on the held-out prompts: `python -m quire.demo.evaluate`."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from .corpus import HeldOutPrompt, held_out_prompts
from .network import Network, Shape
from .stories import story_faults
from .vocabulary import end_token_ids

MODEL_FOLDER = Path(__file__).parent / "model"
DRAFTER_FOLDER = MODEL_FOLDER / "drafter"
EVALUATION_SEED = 77
MAX_TOKENS = 256


def load_network(folder: Path) -> Network:
    """Load an exported network, its bfloat16 weights computed with in float32."""
    config = json.loads((folder / "config.json").read_text())
    network = Network(
        Shape(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            vocab_size=config["vocab_size"],
        )
    )
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def _faults(prompt: HeldOutPrompt, answer: str) -> list[str]:
    """List what is wrong with an answer that ended by itself."""
    if not prompt.facts:
        return [] if answer == prompt.expected else [f"expected {prompt.expected!r}"]
    facts = prompt.facts
    return story_faults(
        facts.get("begun", ""),
        answer,
        facts["hero"],
        facts["animal"],
        facts.get("friend"),
        facts.get("thing"),
    )


def evaluate(folder: Path, num_per_task: int, show_faults: bool = False) -> dict[str, float]:
    """Answer the held-out prompts greedily, print the rates of success and return them."""
    network = load_network(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end_ids = end_token_ids(tokenizer)
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for prompt in held_out_prompts(EVALUATION_SEED, num_per_task):
        token_ids = tokenizer.encode(prompt.prompt).ids
        generated = network.greedy(token_ids, end_ids, MAX_TOKENS)
        ended = generated[-1] in end_ids
        answer = tokenizer.decode(generated[:-1] if ended else generated, skip_special_tokens=False)
        faults = _faults(prompt, answer) if ended else ["no end"]
        outcomes[prompt.task].append(not faults)
        if faults and show_faults:
            print(f"--- {prompt.task}: {faults}\n{prompt.prompt}\n>>> {answer}")
    print(f"{'held-out task':<34}{'prompts':>8}{'right':>8}{'rate':>9}")
    rates = {}
    for task in sorted(outcomes):
        results = outcomes[task]
        rates[task] = sum(results) / len(results)
        print(f"{task:<34}{len(results):>8}{sum(results):>8}{rates[task]:>9.1%}")
    return rates


def main() -> None:
    """Evaluate the bundled model, or another folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--show-faults", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    evaluate(arguments.folder, arguments.prompts, arguments.show_faults)
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
