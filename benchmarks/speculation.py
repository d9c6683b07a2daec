"""Speculative decoding on a CPU: time without it over time with it, both in turn.

The demo model, one request at a time, on prompts of its kinds: extraction as JSON behind some
examples, lists of sums, stories that go on, and an extraction that is asked again and again with
one number changed. The ~125 M-parameter shape of benchmarks.offline with
random weights, 32 at once, where hardly a guess is right: of 64 tokens, all of them said before,
each is as likely as the others. Answers must be equal. Prompts are cached from a first round on, so
that what is timed are the tokens that come out; what a drafter has learned is forgotten before each
round, so that it knows the answers of the same round at most.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..demo import tasks
from ..demo.corpus import ChatRenderer
from ..engine.config import DEMO_MODEL
from ..engine.guesses import make_drafter
from ..engine.llm import LLM
from ..engine.params import SamplingParams
from .offline import SHAPE

Prompts = list[list[int]]
FEW = range(100, 164)


def examples(llm: LLM, draw: Callable[[random.Random, bool], Any], shots: int) -> Prompts:
    """Chats with some exchanges of a kind, of which the last has to be answered."""
    renderer, prompts = ChatRenderer(), []
    for seed in range(16):
        rng, messages = random.Random(seed), list[dict[str, Any]]()
        for _ in range(shots + 1):
            messages += draw(rng, False).messages
        text = renderer.render(messages[:-1], add_generation_prompt=True)
        prompts.append(llm.get_tokenizer().encode(text, add_special_tokens=False))
    return prompts


def surprises() -> Prompts:
    """Prompts that say each of FEW twice, so that there always is something to guess."""
    rng = random.Random(7)
    return [rng.sample(FEW, len(FEW)) + rng.sample(FEW, len(FEW)) for _ in range(32)]


def asked_again(llm: LLM) -> Prompts:
    """Ask for the same of four people in turn, whose age alone changes."""
    renderer, prompts = ChatRenderer(), []
    people = (("Anna", "Rome"), ("Paul", "Oslo"), ("Maria", "Vienna"), ("Peter", "London"))
    for index in range(16):
        name, city = people[index % 4]
        request = (
            f"Extract the name, age and city as JSON: {name} is {30 + index} years old and lives "
            f"in {city}."
        )
        text = renderer.render([{"role": "user", "content": request}], add_generation_prompt=True)
        prompts.append(llm.get_tokenizer().encode(text, add_special_tokens=False))
    return prompts


def forget(llm: LLM) -> None:
    """Let another drafter guess from now on, which has seen nothing."""
    wanted, drafting = llm.config.speculative_config, llm.scheduler._state.drafting
    if wanted is not None and drafting is not None:
        drafting._drafter = make_drafter(wanted)


def seconds(
    llm: LLM, prompts: Prompts, params: SamplingParams, *, alone: bool
) -> tuple[float, Any]:
    """Return CPU seconds for all answers, and the answers."""
    groups = [[one] for one in prompts] if alone else [prompts]
    forget(llm)
    start = time.process_time()
    outputs = [one for group in groups for one in llm.generate(group, params, use_tqdm=False)]
    return time.process_time() - start, [one.outputs[0].token_ids for one in outputs]


def measure(
    plain: LLM, guessing: LLM, prompts: Prompts, params: SamplingParams, *, alone: bool, runs: int
) -> dict[str, Any]:
    """Time both engines in turn; return medians, and what guesses gave."""
    times: dict[str, list[float]] = {"plain": [], "guessing": []}
    before = guessing.scheduler.stats
    for run in range(runs + 1):
        given = {}
        for name, llm in (("plain", plain), ("guessing", guessing)):
            spent, given[name] = seconds(llm, prompts, params, alone=alone)
            if run:
                times[name].append(spent)
        assert given["plain"] == given["guessing"], "speculation has changed an answer"
    stats = guessing.scheduler.stats
    num_drafts = stats.num_drafts - before.num_drafts
    num_right = stats.num_accepted_tokens - before.num_accepted_tokens
    return {
        "plain_s": statistics.median(times["plain"]),
        "guessing_s": statistics.median(times["guessing"]),
        "speed_up": statistics.median(times["plain"]) / statistics.median(times["guessing"]),
        "tokens": sum(map(len, given["plain"])),
        "rows_that_guessed": num_drafts // (runs + 1),
        "right_per_row": num_right / max(1, num_drafts),
    }


def main() -> None:
    """Measure all kinds of prompts and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="ngram", choices=["ngram", "suffix", "draft_model"])
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="leave the ~125 M model out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted: dict[str, Any] = {
        "method": options.method,
        "num_speculative_tokens": options.tokens,
    }
    if options.method == "draft_model":
        wanted["model"], options.small = str(DEMO_MODEL / "drafter"), True
    plain = LLM(num_threads=1)
    guessing = LLM(num_threads=1, speculative_config=wanted)
    with tempfile.TemporaryDirectory() as folder:
        config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SHAPE}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        fixed: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True}
        fixed |= {"dtype": "bfloat16", "num_threads": 1, "num_kv_blocks": 512}
        large = plain, guessing
        if not options.small:
            large = LLM(folder, **fixed), LLM(folder, speculative_config=wanted, **fixed)
    greedy = SamplingParams(temperature=0.0, max_tokens=96)
    wild = SamplingParams(
        temperature=2.0, max_tokens=64, ignore_eos=True, seed=1, allowed_token_ids=FEW
    )
    kinds = (
        ("extraction as JSON, 3 examples", examples(plain, tasks.extract_fields, 3), greedy, True),
        ("lists of sums, 1 example", examples(plain, tasks.list_sums, 1), greedy, True),
        ("stories that go on", examples(plain, tasks.finish_story, 0), greedy, True),
        ("extraction, one number changed", asked_again(plain), greedy, True),
        ("32 at once, hardly one right", surprises(), wild, False),
    )
    rows = {}
    for name, prompts, params, alone in kinds[: -1 if options.small else None]:
        engines = (plain, guessing) if alone else large
        row = measure(*engines, prompts, params, alone=alone, runs=options.runs)
        rows[name] = row
        print(
            f"{name:32} {row['speed_up']:5.2f}x  {row['tokens']} tokens, "
            f"{row['rows_that_guessed']} rows guessed, {row['right_per_row']:.2f} right in each"
        )
    for llm in {id(llm): llm for llm in (plain, guessing, *large)}.values():
        llm.close()
    if options.json:
        options.json.write_text(json.dumps({"options": wanted, "kinds": rows}, indent=1))


if __name__ == "__main__":
    main()
