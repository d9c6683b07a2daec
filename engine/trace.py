"""The engine's log: everything that decided what an engine did, in a file that can be folded again.

Recorder hears a core and writes; `read_log` gives the entries back. A log holds token ids and,
unless that is asked for, no text of a prompt; stop strings are left out (the abort that they cause
is an entry), cache salts and names of tenants are replaced by digests of them. The grammar of an
output is there as it was compiled, with the words that it allows: without it nothing could be drawn
again. Logits processors are Python and left out: requests with some cannot be run again. The file
is a row of frames, a length of four bytes and one msgpack object each. It is bounded: a full part
FILE becomes FILE.1, that FILE.2, and the part after FILE.3 is dropped. What cannot be written ends
the recording and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from xxhash import xxh3_64

from .config import EngineConfig
from .errors import ConfigError
from .plan import StepPlan, StepResult
from .request import Request
from .sched.scheduler import Decision

logger = logging.getLogger("quire")

FORMAT = 1
NUM_PARTS = 4
_LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 2**28


class Header(Struct, frozen=True, tag="log"):
    """The first entry of every part."""

    format: int
    version: str
    """Quire's."""
    config: EngineConfig
    """With a number where the machine decided."""
    part: int
    """0 begins with the engine."""
    slots: dict[int, str]
    """Who runs where at the beginning of the part."""


class Added(Struct, frozen=True, tag="add"):
    """A request was queued."""

    request: Request
    parent_id: str | None
    text: str | None = None
    """The prompt's, where texts are recorded."""
    unrecorded: tuple[str, ...] = ()
    """Parameters that decide its tokens and are not in the log: Python is not recorded."""


class Aborted(Struct, frozen=True, tag="abort"):
    """A living request was ended from outside: by its client or by a stop string."""

    request_id: str


class Launched(Struct, frozen=True, tag="launch"):
    """A step was planned."""

    step: int
    digest: int
    """Of the whole plan."""
    admitted: tuple[tuple[int, str], ...]
    """(slot, request id)"""
    num_tokens: int


class Landed(Struct, frozen=True, tag="land"):
    """The oldest step in flight gave its tokens."""

    step: int
    slots: bytes
    """[samples] int32,"""
    token_ids: bytes
    """and what each drew, [samples] int32."""
    logprobs: int
    """Digest of the log probabilities; 0 where nobody asked."""
    guesses: bytes = b""
    """What the device guessed, int32; empty where the plan says it."""


class Failed(Struct, frozen=True, tag="fail"):
    """The oldest step in flight died, with all behind it."""

    step: int
    message: str


class Budgeted(Struct, frozen=True, tag="budget"):
    """From here on steps have another budget."""

    num_tokens: int


class Cleared(Struct, frozen=True, tag="clear"):
    """The prefix cache was emptied."""


Entry = Header | Added | Aborted | Launched | Landed | Failed | Budgeted | Cleared


class Log(NamedTuple):
    """A log as far as it is there."""

    header: Header
    """Of the oldest part."""
    entries: list[Entry]
    """Without headers."""
    is_whole: bool
    """Whether it begins with the engine and no part is missing."""

    @property
    def unrecorded(self) -> list[str]:
        """Ids of requests that cannot be run again: parameters of theirs are not in the log."""
        added = [one for one in self.entries if isinstance(one, Added)]
        return [one.request.request_id for one in added if one.unrecorded]

    @property
    def is_foldable(self) -> bool:
        """Whether all that it tells can be repeated."""
        return self.is_whole and not self.unrecorded


def plan_digest(plan: StepPlan) -> int:
    """Digest everything that a plan says, 64 bits."""
    digest = xxh3_64()
    for one in plan.admitted:
        head = (one.slot, one.num_prompt_tokens, one.seed, one.stop_token_ids, len(one.token_ids))
        digest.update(repr(head).encode())
        digest.update(one.token_ids.tobytes())
    for array in (
        *(plan.released, plan.block_slots, plan.block_indices, plan.block_ids),
        *(plan.copy_sources, plan.copy_targets, plan.slots, plan.starts, plan.num_tokens),
        plan.samples,
    ):
        digest.update(len(array).to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(array).tobytes())
    if plan.drafts is not None:
        digest.update(plan.drafts.counts.tobytes())
        if plan.drafts.token_ids is not None:
            digest.update(plan.drafts.token_ids.tobytes())
    for scored in plan.scored:
        digest.update(repr((scored.row, scored.start, scored.end, scored.num_top)).encode())
    return digest.intdigest()


def logprobs_digest(result: StepResult) -> int:
    """Digest every bit of a step's log probabilities, of prompts too, and of its vectors; 0 where
    there are none."""
    rows = () if result.logprobs is None else (result.logprobs,)
    digest = xxh3_64()
    if result.vectors is not None:
        digest.update(np.ascontiguousarray(result.vectors).tobytes())
    for one in (*rows, *result.prompt_logprobs):
        for array in (one.sampled, one.ranks, one.top_ids, one.top):
            digest.update(np.ascontiguousarray(array).tobytes())
    told = rows or result.prompt_logprobs or result.vectors is not None
    return digest.intdigest() | 1 if told else 0


def _encode(value: Any) -> Any:
    assert isinstance(value, np.ndarray), type(value)
    return value.astype("<i4").tobytes()


def _decode(kind: Any, value: Any) -> Any:
    assert isinstance(value, bytes), kind
    return np.frombuffer(value, dtype="<i4").astype(np.int32)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
_decoder = msgspec.msgpack.Decoder(Entry, dec_hook=_decode)


class LogWriter:
    """Frames into a bounded, rotated file. Raises OSError."""

    def __init__(self, path: Path, max_bytes: int, header: Header) -> None:
        """header: of the first part; later ones get its config."""
        self._path = path
        self._part_bytes = max_bytes // NUM_PARTS
        self._header = header
        for old in parts_of(path):
            old.unlink()
        self._size = 0
        self._file = self._open(header)

    def write(self, entry: Entry, slots: dict[int, str]) -> None:
        """Append an entry; slots: who runs where, for the header of a new part."""
        frame = _frame(entry)
        if self._size + len(frame) > self._part_bytes and self._size:
            self._rotate(slots)
        self._file.write(frame)
        self._size += len(frame)

    def flush(self) -> None:
        """Hand everything to the system: what a crash of this process cannot take back."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, header: Header) -> BinaryIO:
        file = self._path.open("wb")
        self._size = file.write(_frame(header))
        return file

    def _rotate(self, slots: dict[int, str]) -> None:
        self._file.close()
        for number in range(NUM_PARTS - 1, 0, -1):
            source = _part_path(self._path, number - 1)
            if source.exists():
                source.replace(_part_path(self._path, number))
        self._header = replace(self._header, part=self._header.part + 1, slots=dict(slots))
        self._file = self._open(self._header)


def _frame(entry: Entry) -> bytes:
    data = _encoder.encode(entry)
    return _LENGTH.pack(len(data)) + data


def _part_path(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def parts_of(path: Path) -> list[Path]:
    """Return the parts of a log that exist, the oldest first."""
    candidates = [_part_path(path, number) for number in range(NUM_PARTS)]
    return [one for one in reversed(candidates) if one.exists()]


class Recorder:
    """An observer of a core that writes its log."""

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        version: str,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        """decode: gives the text of a prompt; None: texts are not recorded.

        ConfigError if the file cannot be written.
        """
        self._decode = decode
        self._slots: dict[int, str] = {}
        self._salt_key = secrets.token_bytes(16)
        weights = {self._hide(name): weight for name, weight in config.tenant_weights.items()}
        header = Header(FORMAT, version, replace(config, tenant_weights=weights), 0, {})
        try:
            self._writer: LogWriter | None = LogWriter(path, config.record_bytes, header)
        except OSError as error:
            raise ConfigError(f"record is {str(path)!r}: it cannot be written: {error}.") from error

    def added(self, request: Request, parent_id: str | None) -> None:
        """See Observer."""
        text, params = None, request.params
        unrecorded = ("logits_processors",) if params.logits_processors else ()
        # request.grammar says what structured_outputs does, which may hold what a log cannot.
        params = replace(params, logits_processors=None, structured_outputs=None)
        if self._decode is None:
            params = replace(params, stop=(), bad_words=())
        else:
            text = self._decode(request.prompt_token_ids.tolist())
        bare = replace(
            request,
            params=params,
            cache_salt=None if request.cache_salt is None else self._hide(request.cache_salt),
            tenant=self._hide(request.tenant),
        )
        self._write(Added(bare, parent_id, text, unrecorded))

    def aborted(self, request_id: str) -> None:
        """See Observer."""
        self._write(Aborted(request_id))

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        names = [admission.sequence.request_id for admission in decision.admissions]
        slots = [one.slot for one in plan.admitted]
        admitted = tuple(zip(slots, names, strict=True))
        self._write(Launched(plan.step, plan_digest(plan), admitted, plan.num_scheduled_tokens))
        self._slots.update(admitted)
        self._flush()

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """See Observer."""
        owners = np.where(plan.right(result.token_ids), plan.sampled()[0], -1)
        slots = owners.astype("<i4").tobytes()
        tokens = result.token_ids.astype("<i4").tobytes()
        guesses = b"" if result.guesses is None else result.guesses.astype("<i4").tobytes()
        self._write(Landed(plan.step, slots, tokens, logprobs_digest(result), guesses))

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer."""
        self._write(Failed(plan.step, message))
        self._flush()

    def budgeted(self, num_tokens: int) -> None:
        """See Observer."""
        self._write(Budgeted(num_tokens))

    def cleared(self) -> None:
        """See Observer."""
        self._write(Cleared())

    def closed(self) -> None:
        """See Observer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _hide(self, name: str) -> str:
        """Replace a name by a digest: equal ones stay equal, and nothing stays nothing."""
        if name == "":
            return name
        data = name.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._salt_key, digest_size=16).hexdigest()

    def _write(self, entry: Entry) -> None:
        if self._writer is not None:
            try:
                self._writer.write(entry, self._slots)
            except OSError as error:
                self._give_up(error)

    def _flush(self) -> None:
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.error("the engine's log cannot be written, recording ends: %s", error)
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def read_log(path: Path) -> Log:
    """Read all parts of a log. ConfigError if it is none; a cut-off last entry is left out."""
    parts = parts_of(path)
    if not parts:
        raise ConfigError(f"{str(path)!r} does not exist: give a file that --record wrote.")
    entries: list[Entry] = []
    headers: list[Header] = []
    for part in parts:
        read = _read_part(part)
        header = next(read, None)
        if not isinstance(header, Header) or header.format != FORMAT:
            raise ConfigError(f"{str(part)!r} is not a log that this version of Quire wrote.")
        headers.append(header)
        entries.extend(read)
    numbers = [header.part for header in headers]
    return Log(headers[0], entries, numbers == list(range(len(numbers))))


def _read_part(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > MAX_FRAME_BYTES:
                raise ConfigError(f"{str(path)!r} is not a log of Quire: an entry of {length} B.")
            data = file.read(length)
            if len(data) < length:
                return
            try:
                yield _decoder.decode(data)
            except (msgspec.MsgspecError, ValueError, AssertionError) as error:
                raise ConfigError(f"{str(path)!r} is not a log of Quire: {error}.") from error
