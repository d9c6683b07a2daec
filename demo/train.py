"""Trains and exports the demo model and its drafter: `python -m quire.demo.train`."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .corpus import END_OF_TEXT, TURN_END, TURN_START, training_texts
from .evaluate import DRAFTER_FOLDER, MODEL_FOLDER, evaluate, load_network
from .network import Network, Shape
from .optimizer import Muon
from .vocabulary import VOCABULARY_SIZE, end_token_ids, save_tokenizer, token_id, train_tokenizer

SEED = 20
MODEL_SHAPE = Shape(num_layers=4)
DRAFTER_SHAPE = Shape(num_layers=1)
MODEL_STEPS = 5000
DRAFTER_STEPS = 1500
BATCH_TOKENS = 2048
POOL_SIZE = 512
TOKENIZER_TEXTS = 12_000
WARMUP_STEPS = 40
DECAY_SHARE = 0.5
# Going on from an exported model, the learning rates are this much of what they are at first.
CONTINUED_RATE = 0.6
CHECKPOINT_EVERY = 100
MATRIX_RATE = 0.016
EMBEDDING_RATE = 3e-3
# What others than the assistant say is mostly not predictable: few of its tokens count.
PROMPT_SHARE = 0.01

Example = tuple[list[int], list[bool]]


def choose_counted(token_ids: list[int], tokenizer: Tokenizer, rng: random.Random) -> list[bool]:
    """Choose the tokens that count in the loss: all of the assistant's, a few of the others'."""
    turn_start = token_id(tokenizer, TURN_START)
    turn_end = token_id(tokenizer, TURN_END)
    if turn_start not in token_ids:
        return [True] * len(token_ids)
    heading = [turn_start, *tokenizer.encode("assistant\n").ids]
    counted = [rng.random() < PROMPT_SHARE for _ in token_ids]
    in_answer = False
    for index, current in enumerate(token_ids):
        if in_answer:
            counted[index] = True
            in_answer = current != turn_end
        elif token_ids[index + 1 - len(heading) : index + 1] == heading:
            in_answer = True
    return counted


def read_corpus(tokenizer: Tokenizer, seed: int, num_texts: int) -> list[Example]:
    """Draw the corpus and encode it."""
    rng = random.Random(seed)
    examples = []
    for text in training_texts(seed, num_texts):
        token_ids = tokenizer.encode(text).ids
        examples.append((token_ids, choose_counted(token_ids, tokenizer, rng)))
    return examples


def make_batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of texts of like length without end: token ids and which of them count.

    Each text is a row of its own, so none is seen through another, and each starts at position 0.
    """
    rng = random.Random(seed)
    padding = token_id(tokenizer, END_OF_TEXT)
    for pool_seed in range(seed * 1000, seed * 1000 + 1000):
        pool = read_corpus(tokenizer, pool_seed, POOL_SIZE)
        pool.sort(key=lambda example: len(example[0]))
        batches: list[list[Example]] = [[]]
        for example in pool:
            if (len(batches[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(example)
        rng.shuffle(batches)
        for batch in batches:
            longest = max(len(token_ids) for token_ids, _ in batch)
            yield (
                torch.tensor([ids + [padding] * (longest - len(ids)) for ids, _ in batch]),
                torch.tensor([chosen + [False] * (longest - len(chosen)) for _, chosen in batch]),
            )


def loss_of(network: Network, token_ids: Tensor, counted: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens that count."""
    chosen = counted[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = network(token_ids[:, :-1])
        logits = network.logits(hidden[chosen])
    return functional.cross_entropy(logits.float(), token_ids[:, 1:][chosen])


def train_network(
    network: Network,
    tokenizer: Tokenizer,
    num_steps: int,
    seed: int,
    folder: Path,
    kept: Path,
    rate_scale: float = 1.0,
) -> None:
    """Train a network and export it to a folder.

    What is needed to go on after a break lies in `kept`; going on gives the same network.
    """
    matrices = [parameter for parameter in network.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=MATRIX_RATE, decay=0.01),
        torch.optim.AdamW(others, lr=EMBEDDING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base_rates = [rate_scale * optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    batches = make_batches(tokenizer, seed)
    padding = token_id(tokenizer, END_OF_TEXT)
    num_done = restore(network, optimizers, kept)
    num_tokens = sum(int(next(batches)[0].ne(padding).sum()) for _ in range(num_done))
    tokens_before, recent, started = num_tokens, 0.0, time.monotonic()
    for step in range(num_done, num_steps):
        factor = min(1.0, (step + 1) / WARMUP_STEPS, (1 - step / num_steps) / DECAY_SHARE)
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        token_ids, counted = next(batches)
        loss = loss_of(network, token_ids, counted)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad()
        num_tokens += int(token_ids.ne(padding).sum())
        recent += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{num_steps}  loss {recent / 50:.4f}  tokens {num_tokens:,}  "
                f"{(num_tokens - tokens_before) / seconds:,.0f}/s  {seconds:.0f} s",
                flush=True,
            )
            recent = 0.0
        if (step + 1) % CHECKPOINT_EVERY == 0:
            keep(network, optimizers, step + 1, kept)
    export(network, tokenizer, folder)
    kept.unlink(missing_ok=True)


def _states(
    network: Network, optimizers: list[torch.optim.Optimizer]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each parameter's name with its optimizer state."""
    for name, parameter in network.named_parameters():
        for optimizer in optimizers:
            if parameter in optimizer.state:
                yield name, optimizer.state[parameter]


def keep(
    network: Network, optimizers: list[torch.optim.Optimizer], num_done: int, kept: Path
) -> None:
    """Write down parameters and optimizers after a number of steps."""
    tensors = {f"parameter:{name}": tensor for name, tensor in network.state_dict().items()}
    for name, state in _states(network, optimizers):
        tensors |= {f"{field}:{name}": torch.as_tensor(value) for field, value in state.items()}
    fresh = kept.with_suffix(".new")
    save_file(tensors, fresh, metadata={"num_done": str(num_done)})
    fresh.replace(kept)


def restore(network: Network, optimizers: list[torch.optim.Optimizer], kept: Path) -> int:
    """Load what was kept, if anything was, and return the number of steps done."""
    if not kept.exists():
        return 0
    with safe_open(kept, "pt") as source:
        num_done = int(source.metadata()["num_done"])
        tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    owners = dict(network.named_parameters())
    chosen = {
        id(parameter): optimizer
        for optimizer in optimizers
        for parameter in optimizer.param_groups[0]["params"]
    }
    for key, tensor in tensors.items():
        field, name = key.split(":")
        if field == "parameter":
            owners[name].data.copy_(tensor)
        else:
            chosen[id(owners[name])].state[owners[name]][field] = tensor
    return num_done


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a checkpoint in the layout of Hugging Face, the weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    end_ids = end_token_ids(tokenizer)
    state = {name: tensor.bfloat16().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = network.shape.config(end_ids)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": end_ids,
        "pad_token_id": token_id(tokenizer, END_OF_TEXT),
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)


def main() -> None:
    """Train tokenizer, model and drafter, export them, and measure the exported model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=MODEL_STEPS)
    parser.add_argument("--drafter-steps", type=int, default=DRAFTER_STEPS)
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--start", type=Path, help="go on from this exported model")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts of each task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    if arguments.start:
        tokenizer = Tokenizer.from_file(str(arguments.start / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(training_texts(arguments.seed, TOKENIZER_TEXTS))
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE, tokenizer.get_vocab_size()
    drafter_folder = arguments.folder / DRAFTER_FOLDER.relative_to(MODEL_FOLDER)
    plans = (
        (MODEL_SHAPE, arguments.steps, arguments.folder),
        (DRAFTER_SHAPE, arguments.drafter_steps, drafter_folder),
    )
    for shape, num_steps, folder in plans:
        if num_steps:
            kept = arguments.kept / f"quire-demo-{shape.num_layers}-{arguments.seed}.safetensors"
            torch.manual_seed(arguments.seed)
            network, rate_scale = Network(shape), 1.0
            if arguments.start and shape == MODEL_SHAPE:
                network, rate_scale = load_network(arguments.start).train(), CONTINUED_RATE
            train_network(network, tokenizer, num_steps, arguments.seed, folder, kept, rate_scale)
            print(f"{folder}: {network.num_parameters:,} parameters")
    trained = time.monotonic() - started
    evaluate(arguments.folder, arguments.prompts)
    print(f"trained in {trained:.0f} s, all in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
