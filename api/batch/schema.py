"""Files and batches as OpenAI's clients know them, and a batch's lines."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ..schema import Only

BATCH = "batch"
BATCH_OUTPUT = "batch_output"

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")


class FileForm(Struct, kw_only=True):
    """POST /v1/files: a form."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]
    purpose: Literal["batch"]


class FileObject(Struct, frozen=True, kw_only=True):
    """A file that was kept."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"


class FileList(Struct, frozen=True, kw_only=True):
    """GET /v1/files."""

    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FileDeleted(Struct, frozen=True, kw_only=True):
    """DELETE /v1/files/ID."""

    id: str
    object: str = "file"
    deleted: bool = True


class BatchBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: Only = None


class RequestCounts(Struct, frozen=True, kw_only=True):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Fault(Struct, frozen=True, kw_only=True):
    """Why a batch was not begun, or not gone on with."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Of the input file, from 1."""


class Faults(Struct, frozen=True):
    """The first of them."""

    data: list[Fault]
    object: str = "list"


class BatchObject(Struct, frozen=True, kw_only=True):
    """A batch."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Faults | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    object: str = "batch"


class BatchList(Struct, frozen=True, kw_only=True):
    """GET /v1/batches."""

    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Line(Struct, forbid_unknown_fields=True):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class LineResponse(Struct, frozen=True):
    """What a request was answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(Struct, frozen=True):
    """Why a request was not asked."""

    code: str
    message: str


class Answer(Struct, frozen=True, kw_only=True):
    """One line of an output."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None
