"""The oracle of a request: where it ends, what it may draw, that it can be replayed."""

from __future__ import annotations

import pytest
import torch
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import MAX_POSITIONS, VOCAB_SIZE, random_weights, write_config
from quire.reference.decoder import DecoderConfig, DecoderWeights, logits
from quire.reference.generate import Generated, Wish, generate

REFERENCE = choose_ops("cpu", "reference")
PROMPT = [5, 9, 2, 77]


class Model:
    """A tiny model that answers."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights

    def __call__(self, prompt: list[int] = PROMPT, **wish: object) -> Generated:
        return generate(self.config, self.weights, prompt, Wish(**wish))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = read_model_config(write_config("qwen3", tmp_path_factory.mktemp("qwen3")))
    return Model(config.decoder, random_weights(config, REFERENCE))


def test_greedy_takes_the_best_of_each_prefix(model: Model) -> None:
    given = model(max_tokens=6)
    tokens = torch.tensor(PROMPT + given.token_ids, dtype=torch.int32)
    best = logits(model.config, model.weights, tokens).argmax(-1)
    assert best[len(PROMPT) - 1 : -1].tolist() == given.token_ids
    assert all(int(row.ranks) == 1 for row in given.logprobs)


def test_stop_token_ends_and_is_kept(model: Model) -> None:
    free = model(max_tokens=6).token_ids
    stop = free[2]
    given = model(max_tokens=6, stop_token_ids=(stop, VOCAB_SIZE + 1))
    assert given.token_ids == free[: free.index(stop) + 1]
    assert len(given.logprobs) == len(given.token_ids)


def test_stop_tokens_are_not_drawn_too_early(model: Model) -> None:
    """All but two tokens stop: only those may come first; log probabilities stay the raw ones."""
    stops = tuple(token for token in range(VOCAB_SIZE) if token not in (3, 4))
    given = model(max_tokens=6, min_tokens=3, stop_token_ids=stops)
    assert set(given.token_ids[:3]) <= {3, 4}
    first = model(max_tokens=1, num_logprobs=1)
    assert int(given.logprobs[0].ranks) > 1
    assert float(first.logprobs[0].top) > float(given.logprobs[0].sampled)


def test_everything_forbidden_ends_with_minus_one(model: Model) -> None:
    given = model(max_tokens=6, min_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
    assert given.token_ids == [-1]


def test_seed_decides_and_replays(model: Model) -> None:
    answers = [
        model(max_tokens=8, temperature=1.0, seed=seed).token_ids for seed in (1, 1, 2, 2**64 - 1)
    ]
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers}) == 3


def test_a_longer_answer_continues_a_shorter(model: Model) -> None:
    long = model(max_tokens=8, temperature=1.0, seed=3).token_ids
    assert model(max_tokens=3, temperature=1.0, seed=3).token_ids == long[:3]


def test_model_length_ends(model: Model) -> None:
    prompt = [1] * (MAX_POSITIONS - 2)
    assert len(model(prompt, max_tokens=9).token_ids) == 2
