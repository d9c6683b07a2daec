"""GET /v1/models and /v1/models/NAME."""

from __future__ import annotations

import msgspec
from aiohttp import web

from ..convert import check_model
from ..schema import ModelCard, ModelList
from ..state import STATE, ServerState


def _card(state: ServerState) -> ModelCard:
    engine = state.engine
    return ModelCard(
        id=engine.model_name,
        created=state.created,
        max_model_len=engine.max_model_len,
    )


async def list_models(request: web.Request) -> web.Response:
    """The one model that is served."""
    body = ModelList([_card(request.app[STATE])])
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def show_model(request: web.Request) -> web.Response:
    """A model by name; ApiError 404 for another."""
    state = request.app[STATE]
    check_model(request.match_info["model"], state.engine.model_name)
    return web.Response(body=msgspec.json.encode(_card(state)), content_type="application/json")
