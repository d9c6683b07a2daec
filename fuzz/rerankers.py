"""Tiny causal checkpoints that rerank as Qwen3-Reranker does, and transformers' scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from .checkpoints import Kind, make_model

SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
ARCHITECTURES: dict[Kind, str] = {"qwen3": "Qwen3", "qwen2": "Qwen2"}
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def make_tokenizer(folder: Path) -> Any:
    """Bytes, and two words of several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {one: index for index, one in enumerate([*alphabet, "no", "ye", "yes"])}
    merges = [("n", "o"), ("y", "e"), ("ye", "s")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.save(str(folder / "tokenizer.json"))
    return backend


class Reranker(NamedTuple):
    """A causal checkpoint, transformers' own model of it, and its tokenizer."""

    path: Path
    model: Any
    backend: Any

    def logits(self, prompt: str) -> Any:
        """What transformers says comes next, in float32, as float64."""
        ids = torch.tensor([self.backend.encode(prompt).ids])
        with torch.no_grad():
            return self.model(ids).logits[0, -1].double()

    def margin(self, prompt: str) -> float:
        """How much likelier yes is than no, as a logarithm."""
        logits = self.logits(prompt)
        return float(logits[self.token("yes")] - logits[self.token("no")])

    def token(self, word: str) -> int:
        return int(self.backend.token_to_id(word))


def make_reranker(folder: Path, kind: Kind, **config: Any) -> Reranker:
    """Write a checkpoint into folder. config: fields of its config.json."""
    backend = make_tokenizer(folder)
    model = make_model(kind, vocab_size=backend.get_vocab_size() + 5, max_position_embeddings=1024)
    model.save_pretrained(folder)
    rewrite(folder / "config.json", **config)
    return Reranker(folder, model, backend)


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file, or begin one."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def asked(query: str, document: str, task: str = TASK) -> str:
    """The prompt as the model's authors write it."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return f"{prefix}<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}{suffix}"


def overrides(kind: Kind, **more: Any) -> dict[str, Any]:
    """As people start vLLM with such a model."""
    architecture = f"{ARCHITECTURES[kind]}ForSequenceClassification"
    return {
        "architectures": [architecture],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    } | more
