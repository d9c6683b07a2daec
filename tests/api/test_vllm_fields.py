"""Fields that vLLM adds to OpenAI's bodies, through the openai package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_that_repeats_itself_ends(client: openai.OpenAI) -> None:
    extra = {
        "repetition_detection": {"max_pattern_size": 2, "min_count": 3},
        "allowed_token_ids": [7],
        "ignore_eos": True,
        "return_token_ids": True,
    }
    choice: Any = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=9, extra_body=extra
    ).choices[0]
    assert (choice.token_ids, choice.finish_reason) == ([7, 7, 7], "repetition")
    assert choice.stop_reason == "repetition_detected" and choice.text


def test_thoughts_end_where_their_budget_is_spent(client: openai.OpenAI, live: Any) -> None:
    """The prompt begins a thought, as templates do."""
    encode = live.engine.tokenizer.encode
    end = encode(" cat ate.", add_special_tokens=False)
    assert len(end) > 1
    extra = {"ignore_eos": True, "return_token_ids": True, "thinking_token_budget": 3}
    answer: Any = client.completions.create(
        model="tiny",
        prompt="sat",
        max_tokens=3 + len(end) + 2,
        extra_body=extra | {"allowed_token_ids": [8]},
    )
    assert answer.choices[0].token_ids == [8, 8, 8, *end, 8, 8]
    with pytest.raises(openai.BadRequestError, match="thinking_token_budget is -3"):
        client.completions.create(
            model="tiny", prompt="a", extra_body={"thinking_token_budget": -3}
        )


@pytest.mark.parametrize("spaces", [True, False])
def test_special_tokens_are_shown_side_by_side(client: openai.OpenAI, spaces: bool) -> None:
    """Byte-level tokenizers write no spaces, whatever is asked."""
    extra = {
        "allowed_token_ids": [1],
        "skip_special_tokens": False,
        "spaces_between_special_tokens": spaces,
    }
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, extra_body=extra)
    assert answer.choices[0].text == "<|im_start|>" * 3


def test_documents_are_shown_by_the_template(client: openai.OpenAI, live: Any) -> None:
    """In the field of their own, as among the template's options."""
    documents = [{"title": "mat", "text": "the cat sat"}, {"title": "cat", "text": "it ate"}]
    messages: Any = [{"role": "user", "content": "the cat"}]
    shown = "<|im_start|>mat\nthe cat sat<|im_end|>\n<|im_start|>cat\nit ate<|im_end|>\n"
    rest = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    wanted = live.engine.tokenizer.encode(shown + rest, add_special_tokens=False)
    for fields in ({"documents": documents}, {"chat_template_kwargs": {"documents": documents}}):
        answer: Any = client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=1,
            extra_body={**fields, "return_token_ids": True},
        )
        assert answer.choices[0].prompt_token_ids == wanted
    with pytest.raises(openai.BadRequestError, match="documents"):
        client.chat.completions.create(
            model="tiny", messages=messages, extra_body={"documents": ["the cat sat"]}
        )
