"""GET /v1/models and /v1/models/NAME."""

from __future__ import annotations

from aiohttp import web

from ..convert import check_model
from ..route import json_response
from ..schema import ModelCard, ModelList, ModelPermission
from ..state import STATE, ServerState


def _card(state: ServerState) -> ModelCard:
    engine = state.engine
    permission = ModelPermission(id=f"modelperm-{state.new_id()}", created=state.created)
    return ModelCard(
        id=engine.model_name,
        created=state.created,
        max_model_len=engine.max_model_len,
        root=engine.config.model,
        permission=[permission],
    )


async def list_models(request: web.Request) -> web.Response:
    """The one model that is served."""
    return json_response(ModelList([_card(request.app[STATE])]))


async def show_model(request: web.Request) -> web.Response:
    """A model by name; ApiError 404 for another."""
    state = request.app[STATE]
    check_model(request.match_info["model"], state.engine.model_name)
    return json_response(_card(state))
