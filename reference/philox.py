"""Noise without state: Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405).

The 32 bits of (seed, index, token) are word `token % 4` of the block with key (low, high word of
seed) and counter (token // 4, index, 0, 0). Integers only, held in int64 since torch has no uint32
products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import log, log_of_parts, split

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

Block = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Block, key: tuple[int, int]) -> Block:
    """Return the four words of each counter, all int64 in [0, 2^32) and of one shape."""
    a, b, c, d = counter
    low_key, high_key = key
    for _ in range(ROUNDS):
        # The product may leave the signed range; its 64 bits are right, and the shift is masked.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & WORD) ^ b ^ low_key,
            second & WORD,
            ((first >> 32) & WORD) ^ d ^ high_key,
            first & WORD,
        )
        low_key = (low_key + KEY_STEPS[0]) & WORD
        high_key = (high_key + KEY_STEPS[1]) & WORD
    return a, b, c, d


def token_words(seed: int, index: int, tokens: Tensor) -> Tensor:
    """Return the 32 bits of each token id (int64, any shape) as int64. Seed: 64 bits, any sign."""
    zero = torch.zeros_like(tokens)
    counter = (tokens // 4, zero + (index & WORD), zero, zero)
    words = torch.stack(philox(counter, (seed & WORD, (seed >> 32) & WORD)))
    return words.gather(0, (tokens % 4).unsqueeze(0)).squeeze(0)


def gumbel(words: Tensor) -> Tensor:
    """Turn 32-bit words (int64) into float32 Gumbel noise -log(E), E = -log(1 - v) exponential.

    v = (word + 1/2) / 2^32. The nearer end is used, so that both tails keep their relative
    accuracy: t = (float32(min(word, ~word)) + 1/2) / 2^32 is v below one half and 1 - v above.
    Finite for all words: from -3.14 to 22.88.
    """
    low = words < 2**31
    t = (torch.where(low, words, WORD - words).to(torch.int32).float() + 0.5) * 2.0**-32
    k, m = split(torch.where(low, 1.0 - t, t))
    r = torch.where(low & (k == 0.0), -t, m - 1.0)
    return -log(-log_of_parts(k, r))
