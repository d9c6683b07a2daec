"""/v1/batches: many requests of one file, answered when nobody else waits."""

from __future__ import annotations

import re

from aiohttp import web

from ..auth import tenant_of
from ..batch.archive import ARCHIVE
from ..batch.endpoints import ENDPOINTS
from ..batch.schema import BATCH, ENDED, BatchBody, BatchList, BatchObject
from ..caller import caller_of
from ..decode import read_body, show
from ..errors import ApiError
from ..paging import Paging
from ..route import json_response

PAGING = Paging(default=20, most=100)

UNITS_S = {"m": 60, "h": 3600, "d": 86400}
MAX_WINDOW_S = 30 * 86400
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512


async def create_batch(request: web.Request) -> web.Response:
    """Take a batch on."""
    body = await read_body(request, BatchBody)
    owner, archive = tenant_of(caller_of(request)), request.app[ARCHIVE]
    if body.endpoint not in ENDPOINTS:
        raise ApiError(
            f"endpoint is {show(body.endpoint)}: it must be one of {', '.join(ENDPOINTS)}.",
            param="endpoint",
        )
    window_s = _window_s(body.completion_window)
    _check_metadata(body.metadata or {})
    file = archive.files.find(owner, body.input_file_id)
    if file is None:
        raise ApiError(
            f"input_file_id is {show(body.input_file_id)}: there is no such file.",
            status=404,
            param="input_file_id",
            code="file_not_found",
        )
    if file.purpose != BATCH:
        raise ApiError(
            f"input_file_id names a file of purpose {file.purpose}: it must be {BATCH}.",
            param="input_file_id",
        )
    return json_response(await archive.batches.create(owner, body, window_s))


async def list_batches(request: web.Request) -> web.Response:
    """What was taken on, the latest first."""
    batches = request.app[ARCHIVE].batches.of(tenant_of(caller_of(request)))
    page = PAGING.page(request, batches, lambda batch: batch.id, "desc")
    return json_response(BatchList(**page._asdict()))


async def show_batch(request: web.Request) -> web.Response:
    """How far a batch is."""
    return json_response(_known(request))


async def cancel_batch(request: web.Request) -> web.Response:
    """Ask nothing more of a batch. ApiError 409 where it has ended."""
    batch = _known(request)
    if batch.status in ENDED:
        raise ApiError(
            f"The batch is {batch.status}: only one that has not ended can be cancelled.",
            status=409,
            code="batch_ended",
        )
    return json_response(await request.app[ARCHIVE].batches.cancel(batch.id))


def _known(request: web.Request) -> BatchObject:
    name = request.match_info["batch_id"]
    batch = request.app[ARCHIVE].batches.find(tenant_of(caller_of(request)), name)
    if batch is None:
        raise ApiError(
            f"There is no batch {show(name)}.",
            status=404,
            param="batch_id",
            code="batch_not_found",
        )
    return batch


def _window_s(given: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", given)
    window_s = int(found[1]) * UNITS_S[found[2]] if found else 0
    if not 0 < window_s <= MAX_WINDOW_S:
        raise ApiError(
            f"completion_window is {show(given)}: it must be like 24h, from 1m to 30d.",
            param="completion_window",
        )
    return window_s


def _check_metadata(metadata: dict[str, str]) -> None:
    fits = all(
        len(key) <= MAX_KEY_CHARS and len(value) <= MAX_VALUE_CHARS
        for key, value in metadata.items()
    )
    if len(metadata) > MAX_PAIRS or not fits:
        raise ApiError(
            f"metadata has {len(metadata)} pairs: at most {MAX_PAIRS} are allowed, with keys of "
            f"{MAX_KEY_CHARS} and values of {MAX_VALUE_CHARS} characters.",
            param="metadata",
        )
