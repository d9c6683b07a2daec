"""Errors that a user can see. Each says what was given and what is allowed."""

from __future__ import annotations


class QuireError(Exception):
    """Base of all errors that Quire raises for bad input."""


class ConfigError(QuireError, ValueError):
    """An engine option or a checkpoint's config value is not supported."""


class CheckpointError(QuireError, ValueError):
    """A checkpoint's files are missing, truncated or do not fit the model."""


class ParamsError(QuireError, ValueError):
    """A sampling parameter or a prompt is out of range.

    `param` is the name of the field at fault, for the API's error body.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EngineError(QuireError, RuntimeError):
    """The engine could not finish a request, or is no longer running."""
