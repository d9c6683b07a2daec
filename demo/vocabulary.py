"""The demo model's tokenizer: byte-level BPE trained on the corpus, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import END_OF_TEXT, MARKUP, TEMPLATE_PATH, TURN_END, TURN_START
from .network import MAX_POSITIONS

VOCABULARY_SIZE = 2048

# A digit is always a token of its own, so that sums can be learned. A capitalised word never
# takes the space before it along, so that a name is the same tokens in prose and in JSON.
WORD_PATTERN = (
    r"\p{Lu}\p{L}*| ?\p{Ll}\p{L}*| ?[\p{Lo}\p{Lm}\p{Lt}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer on corpus texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKUP),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def plain(text: str) -> str:
        for token in (*specials, *MARKUP):
            text = text.replace(token, "\n")
        return text

    tokenizer.train_from_iterator((plain(text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the tokenizer is known to have."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def end_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end a generation: the end of a turn, and the end of a text."""
    return [token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files, the chat template among them."""
    template = TEMPLATE_PATH.read_text()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": MAX_POSITIONS,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
