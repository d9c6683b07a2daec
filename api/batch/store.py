"""Files that clients send and get: on disk, of each API key its own.

FileStore is the only writer of its folder: `NAME` is the content of a file and `NAME.json` says
whose it is. Names are the server's own; none is made of what a client says. A content without its
other file was not kept whole, and goes when the store is opened.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from ..errors import ApiError
from ..limits import Limits
from .schema import FileObject

NAME = re.compile(r"file-[0-9a-f]{32}(-output|-error)?")
DRAFT = ".draft"
INFO = ".json"


class Kept(Struct, frozen=True):
    """What is written of a file beside its content."""

    owner: str
    file: FileObject


class FileStore:
    """Keeps files by the name of their owner and their id."""

    def __init__(
        self, limits: Limits, *, clock: Callable[[], float], new_id: Callable[[], str]
    ) -> None:
        self._folder = Path()
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._files: dict[tuple[str, str], FileObject] = {}
        """The oldest first."""
        self._num_bytes = 0
        self._drafts: list[Draft] = []

    def open(self, folder: Path) -> None:
        """Read what was kept, clear away what was not kept whole. OSError."""
        folder.mkdir(exist_ok=True)
        self._folder = folder
        kept = [one for path in folder.iterdir() if (one := _read(path)) is not None]
        for one in sorted(kept, key=lambda one: (one.file.created_at, one.file.id)):
            self._add(one.owner, one.file)
        names = {file.id for file in self._files.values()}
        for path in folder.iterdir():
            if path.name not in names and path.name.removesuffix(INFO) not in names:
                path.unlink()

    def find(self, owner: str, file_id: str) -> FileObject | None:
        """Return a file; None if this owner has none of this id."""
        return self._files.get((owner, file_id))

    def of(self, owner: str) -> list[FileObject]:
        """List an owner's files, the oldest first."""
        return [file for (whose, _), file in self._files.items() if whose == owner]

    def path(self, file: FileObject) -> Path:
        """Tell where the content of a kept file is."""
        return self._folder / file.id

    def draft(self) -> Draft:
        """Begin a file."""
        return Draft(self._folder / f"{self._new_id()}{DRAFT}", self._drafts)

    def check_room(self, draft: Draft, num_more: int) -> None:
        """ApiError 413 where a client's draft becomes too large, or all files together."""
        limits = self._limits
        if draft.num_bytes + num_more > limits.max_file_bytes:
            raise ApiError(
                f"The file is too large: at most {limits.max_file_bytes} bytes are allowed.",
                status=413,
                param="file",
            )
        num_taken = self._num_bytes + sum(one.num_bytes for one in self._drafts)
        if num_taken + num_more > limits.file_store_bytes:
            raise ApiError(
                "The server has no room for the file: it keeps at most "
                f"{limits.file_store_bytes} bytes of files. Delete some first.",
                status=413,
                param="file",
                code="file_store_full",
            )

    async def keep(
        self, draft: Draft, owner: str, filename: str, purpose: str, file_id: str | None = None
    ) -> FileObject:
        """Keep a draft that is whole. file_id: instead of one of its own; replaces what has it."""
        file = FileObject(
            id=file_id or f"file-{self._new_id()}",
            bytes=draft.num_bytes,
            created_at=int(self._clock()),
            filename=filename,
            purpose=purpose,
        )
        assert NAME.fullmatch(file.id), file.id
        info = msgspec.json.encode(Kept(owner, file))
        await asyncio.to_thread(draft.move, self.path(file))
        await asyncio.to_thread(write_whole, self._info(file), info)
        self._add(owner, file)
        return file

    async def drop(self, owner: str, file_id: str) -> None:
        """Forget a file, which must be there; those who read it read on."""
        file = self._files.pop((owner, file_id))
        self._num_bytes -= file.bytes
        # In this order: without the first the other counts for nothing.
        for path in (self._info(file), self.path(file)):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def _add(self, owner: str, file: FileObject) -> None:
        before = self._files.pop((owner, file.id), None)
        self._files[owner, file.id] = file
        self._num_bytes += file.bytes - (0 if before is None else before.bytes)

    def _info(self, file: FileObject) -> Path:
        return self._folder / f"{file.id}{INFO}"


class Draft:
    """A file that is being written. A context manager: what was not kept is gone at its end."""

    def __init__(self, path: Path, drafts: list[Draft]) -> None:
        """drafts: all that are being written, this one too until its end."""
        self._path = path
        self._drafts = drafts
        self._file: BinaryIO = path.open("xb")
        self.num_bytes = 0

    def __enter__(self) -> Draft:
        self._drafts.append(self)
        return self

    def __exit__(self, *of_error: object) -> None:
        self._drafts.remove(self)
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Add to it."""
        self._file.write(data)
        self.num_bytes += len(data)

    def move(self, path: Path) -> None:
        """Give it its last name, once it is safe on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that it is the old one or the new, whatever happens."""
    draft = path.with_name(path.name + DRAFT)
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path) -> Kept | None:
    """Read what is said of a file; None where nothing sane is, or its content is not there."""
    name = path.name.removesuffix(INFO)
    if name == path.name or not NAME.fullmatch(name):
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    content = path.with_name(name)
    sane = kept.file.id == name and content.is_file()
    return kept if sane and content.stat().st_size == kept.file.bytes else None
