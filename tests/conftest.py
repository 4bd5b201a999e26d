"""Fixtures that every kind of test uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.models import ModelStore

MODELS = Path(__file__).parents[1] / ".edged" / "models"


@pytest.fixture(scope="session")
def variant() -> Callable[[str, str], Variant]:
    """Give a variant with real weights, pulled when needed: `variant("bge-small-en-v1.5", "int8")`."""
    store = ModelStore(MODELS, Catalogue.discover())

    def find(model: str, name: str) -> Variant:
        return store.resolve(model, name) if store.present(model, name) else store.pull(model, name)

    return find
