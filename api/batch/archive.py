"""The folder of a server's files and batches: one server at a time, or one server's alone."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from ...engine.errors import ConfigError
from ..state import ServerState
from .batches import Batches
from .store import FileStore


class Archive:
    """Files and batches, from the start of a server to its end."""

    def __init__(self, state: ServerState, folder: Path | None) -> None:
        """folder: what it holds is there for the next server; None: nothing outlives this one."""
        self._given = folder
        self._folder: Path | None = None
        self._lock: BinaryIO | None = None
        self.files = FileStore(state.limits, clock=state.clock, new_id=state.new_id)
        self.batches = Batches(state, self.files)

    def claim(self) -> None:
        """Take the folder, unless that was done. ConfigError where it cannot be had."""
        if self._folder is not None:
            return
        try:
            if self._given is None:
                self._folder = Path(tempfile.mkdtemp(prefix="quire-files-"))
                return
            # What clients send is nobody else's to read.
            self._given.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self._given / "lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise
            self._lock = lock
        except BlockingIOError as error:
            raise ConfigError(
                f"files_dir {str(self._given)!r} is used by another server."
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        self._folder = self._given

    def open(self) -> None:
        """Read what is there, and go on with it. ConfigError where the folder cannot be used."""
        self.claim()
        assert self._folder is not None
        try:
            self.files.open(self._folder / "files")
            self.batches.open(self._folder / "batches")
        except OSError as error:
            raise self._unusable(error) from error

    async def close(self) -> None:
        """Stop the batches, and leave the folder to others."""
        await self.batches.close()
        if self._lock is not None:
            self._lock.close()
        if self._given is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"files_dir {str(self._given)!r} cannot be used: {error}.")


ARCHIVE: web.AppKey[Archive] = web.AppKey("archive", Archive)
