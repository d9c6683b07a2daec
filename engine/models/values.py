"""Typed reading of a checkpoint's config.json: every refusal names key, value and what is allowed.

Owns no meaning: which keys count and what they default to is the family's matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError


class ConfigValues:
    """One JSON object of a config file. A key that is absent or null takes the default.

    Without a default it must be there. All readers raise ConfigError.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def wrong(self, key: str, allowed: str) -> ConfigError:
        """Make the error for a key whose value is not allowed."""
        return ConfigError(
            f"{self.source}: {key} is {self.values.get(key)!r}: it must be {allowed}."
        )

    def get(self, key: str) -> Any:
        """Return the raw value, None where it is absent."""
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """Return an integer of at least low."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
            raise self.wrong(key, f"an integer from {low} to 2147483647")
        return value

    def width(self, key: str, default: int | None = None) -> int:
        """Return a positive multiple of 16, as vector lanes demand."""
        value = self.integer(key, default)
        if value % 16:
            raise self.wrong(key, "a multiple of 16")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number above 0")
        number = float(value)
        if not (math.isfinite(number) and number > 0):
            raise self.wrong(key, "a number above 0")
        return number

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def section(self, key: str) -> ConfigValues | None:
        """Return the object under key, or None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ConfigValues(value, f"{self.source}: {key}")

    def demand(self, key: str, *allowed: Any) -> None:
        """Refuse any value but the allowed ones; an absent key is fine."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            names = " or ".join(repr(value) for value in allowed)
            raise self.wrong(key, f"{names} or absent" if allowed else "absent")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{self.source}: {key} is missing.")
            return default
        return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}: it must be an object.")
    return value
