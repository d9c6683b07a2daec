"""Classes of a model that draws tokens: how likely some words are to come next.

Qwen3-Reranker and its kin (Zhang et al. 2025, arXiv:2506.05176) ask about two texts and take the
answers "no" and "yes". Reads vLLM's keys of config.json, classifier_from_token and method, and
sentence-transformers' module LogitScore. Owns no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ...reference.decoder import DecoderConfig
from ..config import PoolerConfig
from ..errors import ConfigError
from ..vectors import PoolingConfig, Scores, Stage
from .family import TensorNames
from .pooling import SETTINGS, apply_wish, named_activation, read_modules, with_prompts
from .values import ConfigValues, read_json

TokenId = Callable[[str], int]
"""Finds the one token that a word is. ConfigError where it is none."""

TOKENS, METHOD, QWEN3 = "classifier_from_token", "method", "is_original_qwen3_reranker"
MARGIN, PLAIN = "from_2_way_softmax", "no_post_processing"
SCORE_MODULE = "LogitScore"

QWEN3_PAIRS = """\
{%- set ns = namespace(task='Given a web search query, retrieve relevant passages that answer the \
query', query='', document='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.task = message.content -%}
    {%- elif message.role == 'query' -%}{%- set ns.query = message.content -%}
    {%- elif message.role == 'document' -%}{%- set ns.document = message.content -%}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and \
the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\\n' -}}
{{- '<|im_start|>user\\n<Instruct>: ' + ns.task + '\\n<Query>: ' + ns.query -}}
{{- '\\n<Document>: ' + ns.document + '<|im_end|>\\n' -}}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}
"""
"""How Qwen3-Reranker was trained to be asked."""


def token_classifier(
    path: Path,
    values: ConfigValues,
    shape: DecoderConfig,
    names: TensorNames,
    wish: PoolerConfig | None,
    token_id: TokenId,
) -> PoolingConfig | None:
    """Read what a decoder's words classify; None where a checkpoint names none."""
    given = values.get(TOKENS)
    module = None if given is not None else _score_module(path)
    if given is None and module is None:
        return None
    scores: Scores | None = None
    if module is None:
        ids, labels = _words(values, token_id)
        method = values.get(METHOD) or (MARGIN if values.flag(QWEN3) else None)
        if method not in (MARGIN, PLAIN):
            raise values.wrong(METHOD, f"{MARGIN} or {PLAIN}")
        if method == MARGIN and len(ids) != 2:
            raise values.wrong(TOKENS, f"two words, no and yes, for the method {MARGIN}")
    else:
        found = (module.integer("true_token_id", low=0), module.get("false_token_id"))
        ids = (
            [found[0]] if found[1] is None else [module.integer("false_token_id", low=0), found[0]]
        )
        method, labels, scores = (
            (MARGIN if len(ids) == 2 else PLAIN),
            ("LABEL_0",),
            _activation(path),
        )
    for one in ids:
        if one >= shape.vocab_size:
            raise ConfigError(
                f"{values.source}: classes are told by token {one}, and vocab_size is "
                f"{shape.vocab_size}."
            )
    stage = Stage(
        module=names.embedding if shape.tie_word_embeddings else names.head,
        shape=(len(ids), shape.hidden_size),
        biased=False,
        activation="margin" if method == MARGIN else "identity",
        rows=tuple(ids),
    )
    labels = labels[-1:] if method == MARGIN else labels
    config = PoolingConfig(
        stages=(stage,),
        normalize=False,
        width=len(labels),
        labels=labels,
        scores=scores or ("sigmoid" if len(labels) == 1 else "softmax"),
        pair_template=QWEN3_PAIRS if values.flag(QWEN3) else None,
    )
    return apply_wish(with_prompts(path, config), wish)


def names_tokens(path: Path, values: ConfigValues) -> bool:
    """Whether a checkpoint says that words classify."""
    return values.get(TOKENS) is not None or _score_module(path) is not None


def _words(values: ConfigValues, token_id: TokenId) -> tuple[list[int], tuple[str, ...]]:
    """Return the tokens that are the classes, and what they are called."""
    given = values.get(TOKENS)
    allowed = "a list of at least one word or token id"
    if not isinstance(given, list) or not given:
        raise values.wrong(TOKENS, allowed)
    ids: list[int] = []
    for one in given:
        if isinstance(one, str):
            ids.append(token_id(one))
        elif type(one) is int and one >= 0:
            ids.append(one)
        else:
            raise values.wrong(TOKENS, allowed)
    return ids, tuple(str(one) for one in given)


def _score_module(path: Path) -> ConfigValues | None:
    """Return the settings of the module that makes scores of logits, where there is one."""
    for name, folder in read_modules(path):
        if name == SCORE_MODULE:
            file = folder / "config.json"
            return ConfigValues(read_json(file), str(file))
    return None


def _activation(path: Path) -> Scores | None:
    """Return what scores go through, where sentence-transformers' settings say."""
    file = path / SETTINGS
    values: dict[str, Any] = read_json(file) if file.exists() else {}
    name = values.get("activation_fn")
    if name is None:
        return None
    found = named_activation(str(name), str(file))
    assert found in get_args(Scores), found
    return found
