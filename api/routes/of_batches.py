"""The routes of files and batches."""

from __future__ import annotations

from ..batch.schema import (
    BatchBody,
    BatchList,
    BatchObject,
    FileDeleted,
    FileForm,
    FileList,
    FileObject,
)
from ..paging import AFTER, ORDER
from ..route import Route
from . import batches, files

OF_BATCHES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/files",
        handler=files.create_file,
        summary="Keep a file for a batch",
        body=FileForm,
        body_media=files.FORM,
        response=FileObject,
        tag="batches",
    ),
    Route(
        method="GET",
        path="/v1/files",
        handler=files.list_files,
        summary="The files that were kept",
        response=FileList,
        query=(ORDER, files.PAGING.limit, AFTER, files.PURPOSE),
        errors=(400,),
        tag="batches",
    ),
    Route(
        method="GET",
        path="/v1/files/{file_id}",
        handler=files.show_file,
        summary="What is known of a file",
        response=FileObject,
        errors=(404,),
        tag="batches",
    ),
    Route(
        method="DELETE",
        path="/v1/files/{file_id}",
        handler=files.delete_file,
        summary="Forget a file",
        response=FileDeleted,
        errors=(404, 409),
        tag="batches",
    ),
    Route(
        method="GET",
        path="/v1/files/{file_id}/content",
        handler=files.file_content,
        summary="The content of a file",
        media="application/octet-stream",
        errors=(404,),
        tag="batches",
    ),
    Route(
        method="POST",
        path="/v1/batches",
        handler=batches.create_batch,
        summary="Answer all requests of a file when nobody else waits",
        body=BatchBody,
        response=BatchObject,
        errors=(404, 429),
        tag="batches",
    ),
    Route(
        method="GET",
        path="/v1/batches",
        handler=batches.list_batches,
        summary="The batches that were taken on, the latest first",
        response=BatchList,
        query=(batches.PAGING.limit, AFTER),
        errors=(400,),
        tag="batches",
    ),
    Route(
        method="GET",
        path="/v1/batches/{batch_id}",
        handler=batches.show_batch,
        summary="How far a batch is",
        response=BatchObject,
        errors=(404,),
        tag="batches",
    ),
    Route(
        method="POST",
        path="/v1/batches/{batch_id}/cancel",
        handler=batches.cancel_batch,
        summary="Ask nothing more of a batch",
        response=BatchObject,
        errors=(404, 409),
        tag="batches",
    ),
)
