"""What grammars see of a tokenizer: the bytes of every token, and which are none. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ParamsError
from ..grammar.grammars import Vocabulary
from ..structured import FIELD
from .tokenizer import Tokenizer


def read_vocabulary(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> Vocabulary:
    """Return the vocabulary of a model with vocab_size logits.

    ParamsError if a token has no text of its own: then no grammar can be followed.
    """
    if tokenizer.pieces is None:
        raise ParamsError(
            "structured_outputs are not supported with this model's tokenizer: the text of a token "
            "depends on its neighbours.",
            FIELD,
        )
    known = min(vocab_size, tokenizer.vocab_size)
    special_ids = sorted(i for i in tokenizer.special_ids | {*eos_token_ids} if i < known)
    tokens = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
    special = {tokenizer.token_text(i): i for i in special_ids}
    return Vocabulary(tokens, special, tuple(i for i in eos_token_ids if i < vocab_size))
