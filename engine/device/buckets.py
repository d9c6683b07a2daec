"""Which steps are padded, and to what: each size of a padded step has its CUDA graph.

Short steps are laid out as rows of one token each (docs/decisions/0016), so that their size is one
number. Steps with longer chunks of prompts keep their rows: a chunk reads its keys once. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from ..plan import MAX_DRAFTS, StepPlan

MOST_GUESSING = 256
"""Rows up to which steps with guesses are padded; what more take is the device's own time."""
CHUNKED_TOKENS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Tokens to which steps with chunks are padded. What more take is the device's own time, too."""
CHUNKED_ROWS = (2, 8, 32, 128, 512)
"""And rows, below the most that there can be; fewer than tokens, by which operations may know that
some row has several."""


class Padded(NamedTuple):
    """The size of a padded step."""

    num_rows: int
    num_tokens: int
    is_flat: bool
    """Whether each token is a row of its own; num_rows is num_tokens then."""


class Buckets(NamedTuple):
    """The sizes of a runner's padded steps, ascending. None of any kind: nothing is padded."""

    flat: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    """Of steps with chunks: some of their tokens yield no sample."""

    def find(self, plan: StepPlan) -> Padded | None:
        """Return what a plan is padded to; None where it stays as it is, as it does where nothing
        is drawn."""
        if not self.flat or not plan.samples.any():
            return None
        num_tokens, num_samples = plan.num_scheduled_tokens, len(plan.sampled()[0])
        if plan.num_tokens.max() <= 1 + MAX_DRAFTS:
            size = _least(self.flat, num_tokens)
            if size:
                return Padded(size, size, is_flat=True)
        if num_tokens == num_samples:
            return None
        # One row of padding holds the tokens of it; a sample needs a row, too.
        rows = _least(self.rows, max(len(plan.slots) + 1, num_samples))
        tokens = _least(CHUNKED_TOKENS, max(num_tokens, rows + 1))
        return Padded(rows, tokens, is_flat=False) if rows and tokens else None

    @property
    def num_graphs(self) -> int:
        """How many graphs there may be: of whole steps, and of what is drawn from by other means;
        of flat ones also with tokens that yield no sample, as steps with chunks have anyway."""
        return 4 * len(self.flat) + 2 * len(self.rows) * len(CHUNKED_TOKENS)

    def largest(self, most_split_rows: int) -> tuple[Padded, ...]:
        """Return the sizes whose steps take the most memory, those with chunks first.

        Of flat ones the last, and the last whose rows attention splits: more rows take more memory
        on either side of that bound.
        """
        split = [size for size in self.flat if size <= most_split_rows]
        flat = sorted({self.flat[-1], *split[-1:]}, reverse=True)
        chunked = Padded(self.rows[-1], CHUNKED_TOKENS[-1], is_flat=False)
        return (chunked, *(Padded(size, size, is_flat=True) for size in flat))


def make_buckets(max_num_seqs: int, num_drafts: int = 0) -> Buckets:
    """Return sizes for all decode steps: 1, 2, 4, 8 rows, then steps of 8 to 256 and of 32 above,
    up to max_num_seqs, or to MOST_GUESSING, where sequences have guesses; and for chunks."""
    most = max(max_num_seqs, min(MOST_GUESSING, max_num_seqs * (1 + num_drafts)))
    sizes = [1, 2, 4, *range(8, 257, 8), *range(288, most + 32, 32)]
    rows = [size for size in CHUNKED_ROWS if size <= max_num_seqs]
    rows += [max_num_seqs + 1] if max_num_seqs + 1 < CHUNKED_TOKENS[-1] else []
    return Buckets((*(size for size in sizes if size < most), most), tuple(rows))


def _least(sizes: tuple[int, ...], wanted: int) -> int:
    """Return the least of sizes that is enough; 0 where none is."""
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else 0
