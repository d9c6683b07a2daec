"""Lists that clients read a page at a time: `order`, `limit` and `after` in the query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from aiohttp import web

from .decode import shorten
from .errors import ApiError
from .route import Query, query_value

T = TypeVar("T")

ORDER = Query(name="order", allowed=("desc", "asc"), summary="desc: the latest first")
AFTER = Query(name="after", summary="begin behind the one of this id")


class Page(NamedTuple, Generic[T]):
    """Some of a list."""

    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Paging(NamedTuple):
    """How many of a list a page has."""

    default: int
    most: int

    @property
    def limit(self) -> Query:
        """What the route says of it."""
        return Query(name="limit", summary=f"most of them, 1 to {self.most} ({self.default})")

    def page(
        self, request: web.Request, items: Sequence[T], id_of: Callable[[T], str], order: str
    ) -> Page[T]:
        """Return the page that a request asks for. items: the oldest first. ApiError 400."""
        items = items[::-1] if order == "desc" else items
        after = query_value(request, AFTER)
        if after:
            places = [place for place, item in enumerate(items, 1) if id_of(item) == after]
            if not places:
                raise ApiError(
                    f"after is {shorten(after)}: the list has none of this id.", param="after"
                )
            items = items[places[0] :]
        page = list(items[: self._size(request)])
        first, last = (id_of(page[0]), id_of(page[-1])) if page else (None, None)
        return Page(page, first, last, len(page) < len(items))

    def _size(self, request: web.Request) -> int:
        given, digits = query_value(request, self.limit), len(str(self.most))
        if not given:
            return self.default
        if not (given.isascii() and given.isdigit() and 1 <= int(given[: digits + 1]) <= self.most):
            raise ApiError(
                f"limit is {shorten(given)}: it must be an integer, 1 to {self.most}.",
                param="limit",
            )
        return int(given[: digits + 1])
