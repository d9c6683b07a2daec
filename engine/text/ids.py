"""What a user gives as token ids or as a text, checked: every fault is a ParamsError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParamsError

IdArray = NDArray[Any]


def as_ids(ids: Any, vocab_size: int) -> IdArray:
    """Return token ids as an array [n > 0] of integers from 0 to vocab_size - 1."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise wrong("prompt", ids, "a text or a list of token ids")
        array = ids
    else:
        if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
            raise wrong("prompt", ids, "a text or a list of token ids")
        kinds = set(map(type, ids)) - {int}
        if any(not issubclass(kind, np.integer) for kind in kinds):
            i, given = next((i, g) for i, g in enumerate(ids) if type(g) in kinds)
            raise wrong(f"prompt[{i}]", given, "a token id, an integer")
        array = np.array(ids, dtype=object if _huge(ids) else np.int64)
    if not len(array):
        raise wrong("prompt", ids, "at least one token")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        i = int(outside.argmax())
        raise wrong(f"prompt[{i}]", int(array[i]), f"a token id, 0 to {vocab_size - 1}")
    return array


def check_unicode(text: str) -> None:
    """Refuse lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        given = text[error.start : error.start + 1]
        raise wrong("prompt", given, "Unicode text without lone surrogates") from None


def cut(lengths: Sequence[int], room: int) -> list[int]:
    """Return how much of one text or of two is kept, as the tokenizers library cuts the longest."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    short, long = sorted(lengths)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return [long, short] if lengths[0] > lengths[1] else [short, long]


def wrong(field: str, given: Any, allowed: str) -> ParamsError:
    """Make the error for a value that is not allowed."""
    shown = repr(given)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ParamsError(f"{field} is {shown}: it must be {allowed}.", field.partition("[")[0])


def _huge(ids: Sequence[int]) -> bool:
    """Tell whether an id does not fit an int64."""
    return len(ids) > 0 and not -(2**63) <= min(ids) <= max(ids) < 2**63
