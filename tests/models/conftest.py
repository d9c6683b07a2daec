"""One checkpoint of every family, written by transformers once a session."""

from __future__ import annotations

import pytest
from quire.fuzz.checkpoints import KINDS, Kind, Made, make_model


@pytest.fixture(scope="session", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    kind: Kind = request.param
    model = make_model(kind)
    path = tmp_path_factory.mktemp(kind)
    model.save_pretrained(path)
    return Made(kind, path, model)
