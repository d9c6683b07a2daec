"""ModelRunner: executes StepPlans in order on one device.

Owns the KV memory and the device table (tokens, blocks, sampling parameters by slot). One thread
calls it. A plan is complete: nothing is asked back, and a plan's drawn tokens are in the table
before the next step reads it, so that the next one may have been queued without knowing them. The
device may run behind: `launch` only queues a step, and a `Landing` waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from ...reference.decoder import Hidden
from ...reference.ops import Batch, SamplingRows
from ..grammar.grammars import Grammars
from ..models.encoder import Model
from ..models.pooler import Pooler
from ..opset import most_split_rows
from ..params import SamplingParams
from ..plan import Admitted, RowFault, StepPlan, StepResult
from . import warm_up
from .buckets import Buckets, make_buckets
from .grammar_rows import Masks
from .graphs import CudaCapture, GraphKey, StepGraphs
from .guesser import Guesser, HeadMaker, Seen, Watched
from .inputs import PackedStep, StepInputs
from .link import FaultedLanding, Landing, Link, Scores, make_link
from .places import Places
from .prompt_scores import Scorer
from .sampler import Drawn, Source, Told, draw
from .sampling_rows import NO_LOGPROBS, PLAIN, SamplingTable, StepExtras
from .state import DeviceTable

logger = logging.getLogger("quire")

Decoding = Literal["exact", "padded", "graphs"]
"""How steps that are not large are computed: as they are, padded to some sizes (see buckets), or by
a CUDA graph for each of those."""


class _Forward(NamedTuple):
    """What the layers gave for a step."""

    hidden: Hidden
    sampled: Tensor
    """[samples, hidden] of the tokens that yield a sample; [0, hidden] where none does."""
    batch: Batch


class ModelRunner:
    """One model, its memory and its slots, on the model's device."""

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        num_drafts: int = 0,
        decoding: Decoding = "exact",
        link: Link | None = None,
    ) -> None:
        """Block ids are below num_blocks, slots below max_num_seqs. num_drafts: guesses of a row
        for which steps are padded. link: None for the device's."""
        config = model.config
        # A vector has the place of a token that nobody computes.
        most = config.max_positions + (model.pooler is not None)
        assert max_model_len <= most, (max_model_len, most)
        self.model = model
        self.ops = ops = model.ops
        self._options: dict[str, Any] = {
            "num_blocks": num_blocks,
            "block_size": block_size,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
            "num_drafts": num_drafts,
            "decoding": decoding,
        }
        self._block_size = block_size
        self._link = link or make_link(model.device)
        self._model_caches = model.new_caches(num_blocks, block_size)
        self._caches = [*self._model_caches]
        """With those of what guesses: all that is copied."""
        self._table = DeviceTable(self._link, max_num_seqs, max_model_len, block_size)
        self._sampling = SamplingTable(ops, self._link, max_num_seqs, config.vocab_size)
        padded = decoding != "exact"
        self._buckets = make_buckets(max_num_seqs, num_drafts) if padded else Buckets()
        self._inputs = StepInputs(self._link, max_num_seqs, max_model_len, self._buckets)
        self._places = Places(self.ops, self._link, self._table, block_size)
        self._graphs = StepGraphs(CudaCapture()) if decoding == "graphs" else None
        self._faults: dict[int, RowFault] = {}
        """By slot: sequences that cannot be computed; each ends with its next token."""
        self._void: list[int] = []
        """Samples of the newest step that do not count."""
        self._scorer = Scorer(model, ops, self._link)
        self._nothing = torch.empty(0, dtype=torch.int32, device=model.device)
        self._make_head: HeadMaker | None = None
        self._guesser: Guesser | None = None
        self._watched: Watched | None = None
        # What was made here was made on another stream than steps run on.
        self._link.settle()

    def renewal(self, **sizes: Any) -> Callable[[], ModelRunner]:
        """Return what makes another runner of the same model, and holds no memory of this one.

        sizes: where it differs, in the words of __init__.
        """
        model, options = self.model, self._options | sizes
        grammars, make_head = self._sampling.grammars.compiled, self._make_head

        def renew() -> ModelRunner:
            other = ModelRunner(model, **options)
            other.follow(grammars)
            if make_head is not None:
                other.guess_by(make_head)
            return other

        return renew

    def follow(self, grammars: Grammars) -> None:
        """Say where the grammars of requests are compiled."""
        self._sampling.grammars.compiled = grammars

    def guess_by(self, make_head: HeadMaker) -> None:
        """Say what guesses where plans leave that to the device, before the first step."""
        self._make_head = make_head
        places = self._places
        head = make_head(places, self._options["num_blocks"])
        self._guesser = Guesser(head, places, self._inputs, self._sampling, self._run)
        self._watched = head.watched
        self._caches += head.caches
        self._link.settle()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""
        return self.launch(plan).result()

    def launch(self, plan: StepPlan) -> Landing:
        """Queue one step: admitted, new blocks, copies, forward, sample."""
        with torch.inference_mode(), self._link.on_stream():
            if self._faults:
                for slot in plan.released.tolist():
                    self._faults.pop(slot, None)
            for admitted in plan.admitted:
                self._admit(admitted)
            self._table.apply(plan)
            if self._guesser is not None:
                self._guesser.begin(plan)
            if len(plan.copy_sources):
                self._copy(plan)
            if not len(plan.slots):
                return self._link.land(plan.step, self._nothing, None)
            guesses = None
            if self._guesser is not None:
                guesses = self._guesser.guess(plan, partial(self._editor, masks=None))
            if guesses is not None and self._sampling.has_grammars(plan.slots):
                # Masks are computed on the host, and there for guesses too.
                plan = plan.told(guesses.cpu().numpy())
            step = self._inputs.pack(plan, self._sampling)
            scores: Scores = ()
            if self.model.pooler is not None:
                drawn = self._compute_vectors(plan, step, self.model.pooler)
            elif plan.scored:
                drawn, scores = self._compute_scored(plan, step)
            else:
                drawn = self._compute(step)
            tokens, logprobs, vectors = drawn
            landing = self._link.land(plan.step, tokens, logprobs, scores, guesses, vectors)
            if step.extras.masked is not None:
                self._sampling.grammars.launched(step.extras.masked, landing, self._void)
            if self._faults or self._void:
                landing = FaultedLanding(landing, plan, self._faults, self._void)
                self._void = []
            return landing

    def _admit(self, admitted: Admitted) -> None:
        """Take a sequence's parameters; if that fails, it draws plainly and its tokens are void."""
        self._faults.pop(admitted.slot, None)
        try:
            self._sampling.admit(admitted)
        except Exception as error:
            logger.exception("the parameters of the sequence in slot %d failed", admitted.slot)
            message = f"Its parameters failed: {type(error).__name__}: {error}"
            self._faults[admitted.slot] = RowFault(admitted.slot, message)
            self._sampling.admit(
                replace(
                    admitted,
                    params=SamplingParams(),
                    stop_token_ids=(),
                    bad_word_ids=(),
                    grammar=None,
                    thinking=None,
                )
            )

    def warm_up(self) -> None:
        """Run every operation once, in a small memory of its own, so that all code is compiled.

        Compiling holds the interpreter's lock, which a server cannot afford later.
        """
        scratch = self.renewal(
            num_blocks=warm_up.NUM_BLOCKS,
            block_size=max(self._block_size, warm_up.MAX_MODEL_LEN),
            max_num_seqs=warm_up.NUM_SLOTS,
            max_model_len=warm_up.MAX_MODEL_LEN,
            decoding="exact",
        )()
        for plan in warm_up.PLANS:
            scratch.execute(plan)

    def capture_largest(self) -> bool:
        """Make the graphs that take the most memory, of padding; return whether there are graphs.

        The first graphs size the memory that all graphs share, so they had better be the largest.
        """
        if self._graphs is None:
            return False
        split, keys = most_split_rows(self.ops, self.model.config.num_kv_heads), list[GraphKey]()
        with torch.inference_mode(), self._link.on_stream():
            for size in self._buckets.largest(split):
                for _ in range(2):
                    step = self._inputs.pack_padding(size)
                    self._run("tokens", step, partial(self._draw_plainly, step))
                keys.append(_key("tokens", step))
            self._link.land(0, self._nothing, None).result()
        return all(map(self._graphs.has, keys))

    @property
    def table_bytes(self) -> int:
        """Memory of what is kept of each slot."""
        return self._table.num_bytes + (self._guesser.head.table_bytes if self._guesser else 0)

    def _copy(self, plan: StepPlan) -> None:
        sources = self._link.upload(plan.copy_sources.astype(np.int64))
        targets = self._link.upload(plan.copy_targets.astype(np.int64))
        for cache in self._caches:
            self.ops.copy_blocks(cache, sources, targets)

    def _compute(self, step: PackedStep) -> Drawn:
        """Compute a step and draw the tokens of the rows that sample."""
        size = step.num_samples
        if size and step.extras == PLAIN:
            tokens = self._run("tokens", step, partial(self._draw_plainly, step))
            return Drawn(tokens[:size], None)
        masks = self._begin_masks(step)
        if self._watched is not None:
            forward = self._forward(step)
            drawn = self._draw(step, forward.sampled, masks)
            self._observe(step, forward)
            return drawn
        hidden = self._run("hidden", step, lambda: self._forward(step).sampled)
        return self._draw(step, hidden, masks)

    def _compute_scored(self, plan: StepPlan, step: PackedStep) -> tuple[Drawn, Scores]:
        """Compute a step that tells of prompts: the last layer for all of its tokens."""
        masks = self._begin_masks(step)
        forward = self._forward(step, whole=True)
        scores = self._scorer.score(plan, forward.hidden.last, self._table.tokens)
        drawn = self._draw(step, forward.sampled, masks)
        self._observe(step, forward)
        return drawn, scores

    def _compute_vectors(self, plan: StepPlan, step: PackedStep, pooler: Pooler) -> Drawn:
        """Compute a step of a model that draws no tokens."""
        whole = pooler.needs_all or self.model.sees_ahead
        forward, size = self._forward(step, whole=whole), step.num_samples
        if not size:
            return Drawn(self._nothing, None)
        pooled = forward.sampled[:size].float()
        if pooler.needs_all:
            assert plan.samples.all(), "prompts are whole here"
            ends = plan.num_tokens.cumsum()
            spans = np.stack((ends - plan.num_tokens, ends), 1)
            starts = self._sampling.pool_starts[plan.slots]
            pooled = pooler.pool(forward.hidden.last, spans.tolist(), starts.tolist())
        vectors = pooler.vectors(pooled, self.ops, self.model.config.dtype)
        tokens = torch.where(vectors.isfinite().all(1), 0, -1).int()
        return Drawn(tokens, None, vectors)

    def _begin_masks(self, step: PackedStep) -> Future[Masks] | None:
        masked = step.extras.masked
        return None if masked is None else self._sampling.grammars.begin(masked)

    def _draw(self, step: PackedStep, hidden: Tensor, masks: Future[Masks] | None) -> Drawn:
        """Draw the tokens of the rows that sample, of which hidden is, with what they ask for."""
        tensors, size = step.tensors, step.num_samples
        if not size:
            return Drawn(self._nothing, None)
        drawn = draw(
            self.ops,
            self.model.logits(hidden[:size]),
            SamplingRows(*(part[:size] for part in tensors.sampling)),
            self._told(step.extras),
            self._editor(step.extras, None if masks is None else masks.result()),
        )
        self._store(tensors.sample_slots[:size], tensors.sample_positions[:size], drawn.tokens)
        if step.extras.pools:
            drawn = drawn._replace(vectors=hidden[:size].to(torch.float32, copy=True))
        return drawn

    def _run(self, kind: str, step: PackedStep, compute: Callable[[], Tensor]) -> Tensor:
        """Compute a part of a step, by its graph where it may have one."""
        if self._graphs is None or not step.is_padded:
            return compute()
        return self._graphs.run(_key(kind, step), compute)

    def _draw_plainly(self, step: PackedStep) -> Tensor:
        """Compute a whole step where nobody asked for more than tokens; padding draws too."""
        tensors, forward = step.tensors, self._forward(step)
        tokens = self.ops.sample(self.model.logits(forward.sampled), tensors.sampling)
        self._store(tensors.sample_slots, tensors.sample_positions, tokens)
        self._observe(step, forward)
        return tokens

    def _forward(self, step: PackedStep, *, whole: bool = False) -> _Forward:
        """Compute all layers; whole: the last one for all tokens."""
        tensors, watched = step.tensors, self._watched
        whole = whole or (watched is not None and watched.needs_last)
        tokens, batch, tail = self._places.of_step(step, whole=whole)
        taps = () if watched is None else watched.taps
        hidden = self.model.hidden(tokens, batch, self._model_caches, tail, taps)
        sampled = hidden.last
        if whole and tensors.tail is not None:
            sampled = sampled[tensors.tail.tokens]
        return _Forward(hidden, sampled, batch)

    def _observe(self, step: PackedStep, forward: _Forward) -> None:
        """Tell what guesses of what was computed, once the tokens are in the table."""
        if self._guesser is None or self._watched is None:
            return
        tensors, (hidden, _, batch) = step.tensors, forward
        size = len(tensors.sample_slots)
        samples = torch.arange(size, device=batch.slots.device)
        if tensors.tail is not None:
            samples = tensors.tail.tokens
        features = (hidden.last,) if self._watched.needs_last else hidden.taps
        seen = Seen(features, batch, samples, tensors.sample_slots, tensors.sample_positions)
        self._guesser.head.observe(seen)

    def _store(self, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
        self.ops.store_tokens(self._table.tokens, slots, positions, tokens)

    def _editor(self, extras: StepExtras, masks: Masks | None) -> Callable[[Tensor], Source] | None:
        """Return what changes a step's logits; None where nobody does."""
        if extras.edits is None and masks is None:
            return None
        if masks is not None:
            self._void = masks.void
            for slot, message in masks.faults.items():
                self._faults[slot] = RowFault(slot, message)
        return partial(self._edit, extras=extras, masks=masks)

    def _edit(self, logits: Tensor, *, extras: StepExtras, masks: Masks | None) -> Source:
        """Edit a step's logits; a row whose logits processors fail is void from now on."""
        known, edits, step = self._table.tokens, self._sampling.edits, extras.edits
        if masks is not None:
            keep = extras.num_logprobs != NO_LOGPROBS
            logits = self._sampling.grammars.apply(logits, masks, keep=keep)
        if step is None:
            return Source(logits, None)
        if not edits.needs_logits(step):
            return Source(logits, edits.rows_of(known, step, extras.forbidden))
        x = self.ops.edit_logits(logits, edits.rows_of(known, step, None))
        edits.end_thoughts(x, known, step)
        for slot, error in edits.process(x, known, step, self._faults):
            logger.error(
                "logits processors of the sequence in slot %d failed", slot, exc_info=error
            )
            message = f"Its logits processors failed: {type(error).__name__}: {error}"
            self._faults[slot] = RowFault(slot, message)
        if extras.forbidden is not None:
            rows, tokens = map(self._link.upload, extras.forbidden)
            x[rows, tokens] = -torch.inf
        return Source(x, None)

    def _told(self, extras: StepExtras) -> Told | None:
        if extras.num_logprobs == NO_LOGPROBS:
            return None
        rows = None if extras.told is None else self._link.upload(extras.told)
        return Told(rows, extras.num_logprobs)


def _key(kind: str, step: PackedStep) -> GraphKey:
    rows, tail = step.tensors.rows, step.tensors.tail
    return GraphKey(kind, len(rows.slots), step.num_tokens, tail is not None)
