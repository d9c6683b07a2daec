"""Words of a causal model as classes: scores of pairs equal what transformers' logits say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire import LLM, PoolingParams
from quire.engine.errors import ConfigError, ParamsError
from quire.engine.models.registry import read_model_config
from quire.engine.models.token_classes import QWEN3_PAIRS
from quire.fuzz.checkpoints import Kind, write_config
from quire.fuzz.rerankers import (
    ARCHITECTURES,
    TASK,
    Reranker,
    asked,
    make_reranker,
    make_tokenizer,
    overrides,
    rewrite,
)

QUERY = "no cat?"
DOCUMENTS = ["yes, a cat", "", "a dog {{ no }} <Query>: näh\n\n", "a cat " * 20]
RAW = PoolingParams(use_activation=False)
MARKS = "{%- for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{# 'query' 'document' #}"
"""A template of pairs whose result is easily told."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Reranker]:
    """Both kinds: with a head of its own, and with that of the embedding."""
    kind: Kind = request.param
    return kind, make_reranker(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def llm(made: tuple[Kind, Reranker]) -> Iterator[LLM]:
    kind, reranker = made
    with LLM(str(reranker.path), hf_overrides=overrides(kind), num_threads=1) as engine:
        yield engine


def scores(llm: LLM, query: str, documents: Any, **how: Any) -> list[float]:
    given = llm.score(query, documents, use_tqdm=False, **how)
    return [one.outputs.score for one in given]


def test_scores_are_how_likely_yes_is_against_no(made: tuple[Kind, Reranker], llm: LLM) -> None:
    _, reranker = made
    margins = [reranker.margin(asked(QUERY, document)) for document in DOCUMENTS]
    np.testing.assert_allclose(
        scores(llm, QUERY, DOCUMENTS, pooling_params=RAW), margins, atol=1e-5
    )
    logits = [reranker.logits(asked(QUERY, document)) for document in DOCUMENTS]
    both = [reranker.token("no"), reranker.token("yes")]
    likely = [float(one[both].softmax(0)[1]) for one in logits]
    np.testing.assert_allclose(scores(llm, QUERY, DOCUMENTS), likely, rtol=0, atol=1e-5)


def test_a_score_has_the_same_bits_alone_and_among_others(llm: LLM) -> None:
    together = scores(llm, QUERY, DOCUMENTS)
    assert together == [scores(llm, QUERY, one)[0] for one in DOCUMENTS]
    assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks


def test_an_instruction_takes_the_place_of_the_usual_one(
    made: tuple[Kind, Reranker], llm: LLM
) -> None:
    wanted = made[1].margin(asked(QUERY, "a cat", "Find cats."))
    given = scores(llm, QUERY, "a cat", pooling_params=RAW, instruction="Find cats.")
    np.testing.assert_allclose(given, [wanted], atol=1e-5)


def test_of_a_pair_that_is_too_long_the_document_loses_its_end(
    made: tuple[Kind, Reranker], llm: LLM
) -> None:
    """What stands behind it makes the model answer: it stays whole."""
    _, reranker = made
    most = len(reranker.backend.encode(asked(QUERY, "yes a")).ids)
    cut = PoolingParams(use_activation=False, truncate_prompt_tokens=most)
    given = scores(llm, QUERY, "yes a cat " * 50, pooling_params=cut)
    np.testing.assert_allclose(given, [reranker.margin(asked(QUERY, "yes a"))], atol=1e-5)
    with pytest.raises(ParamsError, match="must have at most 1024"):
        scores(llm, QUERY, "yes a cat " * 500)
    small = PoolingParams(truncate_prompt_tokens=20)
    with pytest.raises(ParamsError, match="tokens: it must have at most"):
        scores(llm, QUERY, "yes", pooling_params=small)


def test_words_of_a_template_of_ones_own(tmp_path: Path) -> None:
    """Any words, any template; without one the texts stand behind each other."""
    words = {"classifier_from_token": ["yes"], "method": "no_post_processing"}
    reranker = make_reranker(tmp_path, "qwen2", **words)
    file = tmp_path / "pairs.jinja"
    file.write_text(MARKS)
    prompts = {
        str(file): "[query]no[document]a cat",
        MARKS: "[query]no[document]a cat",
        None: "noa cat",
    }
    for template, prompt in prompts.items():
        with LLM(str(tmp_path), chat_template=template, num_threads=1) as llm:
            given = scores(llm, "no", "a cat", pooling_params=RAW)
            wanted = float(reranker.logits(prompt)[reranker.token("yes")])
            np.testing.assert_allclose(given, [wanted], atol=1e-5)
            if template is None:
                with pytest.raises(ParamsError, match="no place for it"):
                    scores(llm, "no", "a cat", instruction="Find cats.")


def test_many_words_are_many_classes(tmp_path: Path) -> None:
    words: dict[str, Any] = {
        "classifier_from_token": ["a", "yes", 7],
        "method": "no_post_processing",
    }
    reranker = make_reranker(tmp_path, "qwen3")
    with LLM(str(tmp_path), hf_overrides=words, num_threads=1) as llm:
        (given,) = llm.classify("no cat", use_tqdm=False)
        assert llm._front.pooling.labels == ("a", "yes", "7")
    ids = [reranker.token("a"), reranker.token("yes"), 7]
    wanted = reranker.logits("no cat")[ids].softmax(0)
    np.testing.assert_allclose(given.outputs.probs, wanted.numpy(), atol=1e-5)


def test_the_instruction_is_the_checkpoints_prompt_unless_one_is_given(tmp_path: Path) -> None:
    reranker = make_reranker(tmp_path, "qwen3", **overrides("qwen3"))
    rewrite(
        tmp_path / "config_sentence_transformers.json",
        prompts={"web": "Find it.", "cats": "Find cats."},
        default_prompt_name="web",
    )
    wanted = {
        (None, None): "Find it.",
        ("cats", None): "Find cats.",
        ("", None): TASK,
        ("cats", "Find dogs."): "Find dogs.",
    }
    with LLM(str(tmp_path), num_threads=1) as llm:
        for (name, instruction), task in wanted.items():
            how = PoolingParams(use_activation=False, prompt_name=name)
            given = scores(llm, QUERY, "a cat", pooling_params=how, instruction=instruction)
            np.testing.assert_allclose(
                given, [reranker.margin(asked(QUERY, "a cat", task))], atol=1e-5
            )


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
def test_sentence_transformers_say_it_with_a_module(tmp_path: Path, activation: Any) -> None:
    """Their checkpoints need no option: the module has the tokens, the tokenizer the template."""
    reranker = make_reranker(tmp_path, "qwen3")
    (tmp_path / "chat_template.jinja").write_text(MARKS)
    (tmp_path / "1_LogitScore").mkdir()
    tokens = {"true_token_id": reranker.token("yes"), "false_token_id": reranker.token("no")}
    rewrite(tmp_path / "1_LogitScore/config.json", **tokens)
    rewrite(tmp_path / "config_sentence_transformers.json", activation_fn=activation)
    before = "sentence_transformers.cross_encoder.modules.logit_score."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.Transformer"},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": f"{before}LogitScore"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with LLM(str(tmp_path), num_threads=1) as llm:
        given = scores(llm, "no", ["a cat", "yes"])
    margins = [reranker.margin(f"[query]no[document]{one}") for one in ("a cat", "yes")]
    wanted = margins if activation else [1 / (1 + np.exp(-one)) for one in margins]
    np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_a_converted_checkpoint_scores_as_the_original(
    made: tuple[Kind, Reranker], llm: LLM, tmp_path: Path
) -> None:
    """People store yes minus no as the one row of a classifier; its template is an option."""
    import transformers

    kind, reranker = made
    make_tokenizer(tmp_path)
    name = f"{ARCHITECTURES[kind]}ForSequenceClassification"
    config = reranker.model.config.__class__(
        **(reranker.model.config.to_dict() | {"num_labels": 1})
    )
    converted = getattr(transformers, name)(config)
    converted.model.load_state_dict(reranker.model.model.state_dict())
    head = reranker.model.lm_head.weight.data
    converted.score.weight.data = (head[reranker.token("yes")] - head[reranker.token("no")])[None]
    converted.save_pretrained(tmp_path)
    with LLM(str(tmp_path), chat_template=QWEN3_PAIRS, num_threads=1) as other:
        given = scores(other, QUERY, DOCUMENTS)
    np.testing.assert_allclose(given, scores(llm, QUERY, DOCUMENTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier_from_token": [1, 2]}, "method is None: it must be from_2_way"),
        ({"classifier_from_token": []}, "a list of at least one word or token id"),
        ({"classifier_from_token": [1.5]}, "a list of at least one word or token id"),
        ({"classifier_from_token": "yes"}, "a list of at least one word or token id"),
        ({"classifier_from_token": [9999, 1], "method": "from_2_way_softmax"}, "vocab_size is 15"),
        ({"classifier_from_token": [1], "method": "from_2_way_softmax"}, "two words, no and yes"),
        ({"classifier_from_token": ["x"], "method": "no_post_processing"}, "there is no tokenizer"),
    ],
)
def test_what_cannot_be_classes_is_said(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_config("qwen3", tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_model_config(tmp_path, overrides=changes)


def test_a_word_of_several_tokens_is_refused(tmp_path: Path) -> None:
    make_reranker(tmp_path, "qwen3")
    changes = overrides("qwen3", classifier_from_token=["no", "maybe"])
    with pytest.raises(ConfigError, match="'maybe': it has 5 tokens, and needs one"):
        LLM(str(tmp_path), hf_overrides=changes)


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make_reranker(tmp_path, "qwen3")
    with pytest.raises(ConfigError, match=r"chat_template is 'nowhere\.jinja'"):
        LLM(str(tmp_path), chat_template="nowhere.jinja")


def test_the_option_replaces_the_template_of_chats(tmp_path: Path) -> None:
    make_reranker(tmp_path, "qwen3")
    with LLM(str(tmp_path), chat_template=MARKS, num_threads=1) as llm:
        (given,) = llm.chat([{"role": "user", "content": "yes"}], use_tqdm=False)
        assert given.prompt == "[user]yes"
