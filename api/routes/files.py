"""/v1/files: what batches read and write."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ..auth import tenant_of
from ..batch.archive import ARCHIVE
from ..batch.schema import BATCH, BATCH_OUTPUT, FileDeleted, FileList, FileObject
from ..batch.store import Draft, FileStore
from ..caller import caller_of
from ..decode import shorten, show
from ..errors import ApiError
from ..outlet import Outlet
from ..paging import ORDER, Paging
from ..route import Query, json_response, query_value
from ..state import STATE

PAGING = Paging(default=10000, most=10000)
PURPOSE = Query(name="purpose", summary=f"only those of {BATCH} or {BATCH_OUTPUT}")

PIECE_BYTES = 256 * 2**10
MAX_FIELD_BYTES = 1024
MAX_FILENAME_CHARS = 255
FORM = "multipart/form-data"


async def create_file(request: web.Request) -> web.Response:
    """Keep a file."""
    if request.content_type != FORM:
        raise ApiError(f"Content-Type is {request.content_type}: it must be {FORM}.", status=415)
    files = request.app[ARCHIVE].files
    owner = tenant_of(caller_of(request))
    with files.draft() as draft:
        form = await _read_form(request, files, draft)
        if form.purpose != BATCH:
            raise ApiError(
                f"purpose is {show(form.purpose)}: only {BATCH} is supported.", param="purpose"
            )
        return json_response(await files.keep(draft, owner, form.filename, BATCH))


async def list_files(request: web.Request) -> web.Response:
    """What was kept."""
    order, purpose = query_value(request, ORDER), query_value(request, PURPOSE)
    files = request.app[ARCHIVE].files.of(tenant_of(caller_of(request)))
    if purpose:
        if purpose not in (BATCH, BATCH_OUTPUT):
            raise ApiError(
                f"purpose is {shorten(purpose)}: it must be {BATCH} or {BATCH_OUTPUT}.",
                param="purpose",
            )
        files = [file for file in files if file.purpose == purpose]
    page = PAGING.page(request, files, lambda file: file.id, order)
    return json_response(FileList(**page._asdict()))


async def show_file(request: web.Request) -> web.Response:
    """What is known of a file."""
    return json_response(_kept(request))


async def delete_file(request: web.Request) -> web.Response:
    """Forget a file. ApiError 409 while a batch reads it."""
    file, archive = _kept(request), request.app[ARCHIVE]
    for batch in archive.batches.unfinished():
        if batch.input_file_id == file.id:
            raise ApiError(
                f"The file is the input of {batch.id}, which is {batch.status}: cancel that first.",
                status=409,
                code="file_in_use",
            )
    await archive.files.drop(tenant_of(caller_of(request)), file.id)
    return json_response(FileDeleted(id=file.id))


async def file_content(request: web.Request) -> web.StreamResponse:
    """Send a file, no faster than its client reads."""
    path = request.app[ARCHIVE].files.path(file := _kept(request))
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/octet-stream"})
    response.content_length = file.bytes
    outlet = Outlet(request, response, request.app[STATE].limits)
    with path.open("rb") as content:
        await outlet.open()
        if request.method != hdrs.METH_HEAD:
            while piece := await asyncio.to_thread(content.read, PIECE_BYTES):
                await outlet.write_whole(piece)
    return await outlet.close()


def _kept(request: web.Request) -> FileObject:
    name = request.match_info["file_id"]
    file = request.app[ARCHIVE].files.find(tenant_of(caller_of(request)), name)
    if file is None:
        raise ApiError(
            f"There is no file {show(name)}.",
            status=404,
            param="file_id",
            code="file_not_found",
        )
    return file


class Form(NamedTuple):
    """What a form says beside the content."""

    filename: str
    purpose: str


async def _read_form(request: web.Request, files: FileStore, draft: Draft) -> Form:
    """Read a form, its file into a draft. ApiError 400 or 413."""
    given: dict[str, str] = {}
    try:
        reader = await request.multipart()
        while (part := await _next_part(reader)) is not None:
            name = part.name if isinstance(part, BodyPartReader) else None
            if name not in ("file", "purpose") or name in given:
                raise ApiError(
                    f"The form has {show(name)}: it must have file and purpose, each once."
                )
            assert isinstance(part, BodyPartReader)
            if name == "purpose":
                given[name] = await _read_field(part)
            else:
                given[name] = (part.filename or "")[:MAX_FILENAME_CHARS]
                await _read_content(part, files, draft)
    except (ValueError, HttpProcessingError, web.RequestPayloadError) as error:
        raise ApiError(f"The form cannot be read: {shorten(str(error))}.") from error
    for name in ("file", "purpose"):
        if name not in given:
            raise ApiError(f"{name} is missing: it must be given.", param=name)
    return Form(given["file"], given["purpose"])


async def _next_part(reader: MultipartReader) -> MultipartReader | BodyPartReader | None:
    """Return the next part. ValueError for what aiohttp meets with failures of its own."""
    try:
        return await reader.next()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(str(error)) from error


async def _read_field(part: BodyPartReader) -> str:
    data = b""
    while piece := await part.read_chunk():
        data += piece
        if len(data) > MAX_FIELD_BYTES:
            raise ApiError(f"{part.name} has more than {MAX_FIELD_BYTES} bytes.", param=part.name)
    return data.decode("utf-8", "replace")


async def _read_content(part: BodyPartReader, files: FileStore, draft: Draft) -> None:
    while piece := await part.read_chunk(PIECE_BYTES):
        files.check_room(draft, len(piece))
        await asyncio.to_thread(draft.write, piece)
