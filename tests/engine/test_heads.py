"""What is guessed on the device is what the dense definition of who guesses draws there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quire import LLM, SamplingParams
from quire.engine.build import build_engine
from quire.engine.config import EngineConfig
from quire.engine.models.base import DecoderModel
from quire.engine.models.head_loader import find_eagle3, find_mtp, load_head
from quire.engine.models.loader import load_weights
from quire.engine.models.registry import ModelConfig, read_model_config
from quire.engine.opset import choose_ops, choose_sums
from quire.engine.plan import MAX_DRAFTS, StepPlan, StepResult
from quire.fuzz.checkpoints import make_checkpoint
from quire.fuzz.heads import HEAD_KINDS, HeadKind, make_guessing
from quire.fuzz.strategies import make_request
from quire.reference import decoder, heads, sampling
from quire.reference.ops import SamplingRows
from torch import Tensor

PROMPTS = ([9] * 3 + list(range(40, 90)), list(range(7, 30)), [5, 6, 7], list(range(40, 81)))


class Dense:
    """Guesses from all tokens of a sequence, each computed anew."""

    def __init__(self, kind: HeadKind, path: Path, config: dict[str, Any]) -> None:
        self.kind, self.ops = kind, choose_ops("cpu", "reference")
        self.target = self.read(path)
        self.model = self.load(self.target)
        if kind == "draft_model":
            self.draft = self.read(Path(config["model"]))
            self.draft_model = self.load(self.draft)
        else:
            eagle = kind.startswith("eagle3")
            found = (
                find_eagle3(Path(config["model"]), self.target) if eagle else find_mtp(self.target)
            )
            head = load_head(found, self.model, self.ops)
            self.head, self.weights = head.config, head.weights

    def read(self, path: Path) -> ModelConfig:
        return read_model_config(path, "bfloat16", sums=choose_sums("auto"))

    def load(self, config: ModelConfig) -> DecoderModel:
        weights = load_weights(config, self.ops, progress=False)
        return DecoderModel(config.decoder, weights, self.ops)

    def logits(self, known: list[int], guesses: list[int]) -> Tensor:
        """What the next guess is drawn from: [1, vocab]."""
        tokens = torch.tensor([*known, *guesses], dtype=torch.int32)
        if self.kind == "draft_model":
            return decoder.logits(self.draft.decoder, self.draft_model.weights, tokens)[-1:]
        # The target has not seen guesses, nor the last known token: their states are the head's.
        seen = torch.tensor(known[:-1], dtype=torch.int32)
        config = self.target.decoder
        computed = decoder.hidden(config, self.model.weights, seen, self.head.taps)
        taps = computed.taps if self.head.kind == "eagle3" else (computed.last,)
        states = heads.state(self.head, self.weights, taps)
        for number in range(len(guesses) + 1):
            pairs = tokens[1 : len(known) + number]
            found = heads.hidden(self.head, self.weights, pairs, states)
            states = torch.cat((states, found.carried[-1:]))
        return heads.logits(self.weights, found.last[-1:], config.vocab_size)


class Watcher:
    """Draws every guess of a run again."""

    def __init__(self, dense: Dense, prompts: dict[str, list[int]], seeds: dict[str, int]) -> None:
        self.dense, self.known, self.seeds = dense, prompts, seeds
        self.lengths = {name: len(known) for name, known in prompts.items()}
        self.slots: dict[int, str] = {}
        self.num_guesses = 0

    def launched(self, decision: Any, plan: StepPlan) -> None:
        for admission, admitted in zip(decision.admissions, plan.admitted, strict=True):
            self.slots[admitted.slot] = admission.sequence.request_id

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        guesses = plan.guesses()
        right = plan.right(result.token_ids)
        drawn: dict[str, list[int]] = {}
        rows = zip(plan.sampled()[0].tolist(), result.token_ids.tolist(), strict=True)
        chain: list[int] = []
        for row, (slot, token) in enumerate(rows):
            name = self.slots[slot]
            guess = -1 if guesses is None else int(guesses[row])
            chain = [*chain, guess] if guess >= 0 else []
            if chain:
                assert guess == self.draw(name, chain[:-1]), (name, chain)
                self.num_guesses += 1
            if right[row]:
                drawn.setdefault(name, []).append(token)
        for name, tokens in drawn.items():
            self.known[name] += tokens

    def draw(self, name: str, guesses: list[int]) -> int:
        known = self.known[name]
        index = len(known) + len(guesses) - self.lengths[name]
        logits = self.dense.logits(known, guesses)
        if self.seeds[name] < 0:
            return int(logits.argmax())
        one = torch.ones(1)
        rows = SamplingRows(
            temperature=one * 0.8,
            top_k=torch.zeros(1, dtype=torch.int32),
            top_p=one * 0.9,
            min_p=one * 0,
            seeds=torch.tensor([self.seeds[name]]),
            indices=torch.tensor([index], dtype=torch.int32),
        )
        return max(0, int(sampling.sample(logits, rows)))

    def added(self, *_: Any) -> None: ...
    def aborted(self, *_: Any) -> None: ...
    def failed(self, *_: Any) -> None: ...
    def budgeted(self, *_: Any) -> None: ...
    def cleared(self) -> None: ...
    def closed(self) -> None: ...


CHUNKS = {"block_size": 8, "max_num_batched_tokens": 24}
FEW_BLOCKS = {"block_size": 4, "num_kv_blocks": 36, "max_num_batched_tokens": 40, "overlap": 2}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, CHUNKS) for kind in HEAD_KINDS),
        *((kind, FEW_BLOCKS) for kind in ("draft_model", "eagle3 few", "mimo")),
    ],
)
def test_guesses_are_those_of_the_dense_definition(
    kind: HeadKind, options: dict[str, Any], tmp_path: Path
) -> None:
    """Chunks of prompts, preempted sequences, steps in flight: a guess depends on tokens alone.

    A draft model's with the prefix cache too; a head's entry at the end of a hit may be another's.
    """
    path = make_checkpoint("qwen3", tmp_path)
    config = make_guessing(kind, path) | {"num_speculative_tokens": 3}
    prompts = {str(i): list(prompt) for i, prompt in enumerate(PROMPTS)}
    seeds = {name: (-1, 11)[int(name) % 2] for name in prompts}
    watcher = Watcher(Dense(kind, path, config), prompts, seeds)
    built = build_engine(
        EngineConfig(
            model=str(path),
            dtype="bfloat16",
            num_threads=1,
            speculative_config=config,  # type: ignore[arg-type]  # a dict will do
            max_model_len=144,
            enable_prefix_caching=kind == "draft_model",
            **options,
        )
    )
    core = built.core
    core.watch(watcher)
    for name, prompt in prompts.items():
        drawn: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
        params = SamplingParams(
            max_tokens=20, **(drawn if seeds[name] >= 0 else {"temperature": 0.0})
        )
        core.add(make_request(name, prompt, params=params, seed=max(0, seeds[name])))
    while core.has_unfinished:
        core.launch()
        core.land()
    stats = core.scheduler.stats
    core.close()
    assert "num_kv_blocks" not in options or stats.num_preemptions
    assert watcher.num_guesses > 25


def test_who_has_not_guessed_for_long_is_computed_first(tmp_path: Path) -> None:
    """A draft model that is the target itself is always right, if it knows all that was said."""
    path = make_checkpoint("qwen3", tmp_path)
    wanted: dict[str, Any] = {"method": "draft_model", "model": str(path), "costs": {}}
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    with LLM(str(path), skip_tokenizer_init=True, num_threads=1, speculative_config=wanted) as llm:
        core, drafting = llm.core, llm.scheduler._state.drafting
        assert drafting is not None
        core.add(make_request("a", list(range(5, 12)), params=params))
        for step in range(60):
            if not core.has_unfinished:
                break
            core.launch()
            drafting._most[0] = 0 if step < 2 * MAX_DRAFTS else 4
            core.land()
        stats = llm.scheduler.stats
    assert not core.has_unfinished
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 8
