"""Fixtures that every kind of test uses."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.models import ModelStore

MODELS = Path(__file__).parents[1] / ".edged" / "models"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Random histories can be told again: `pytest tests/faults --seed 7`."""
    parser.addoption("--seed", type=int, default=None, help="seed of the random fault histories")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Seed of a random history; printed, so that a failure shows it."""
    chosen: int | None = request.config.getoption("--seed")
    drawn = secrets.randbelow(1 << 32) if chosen is None else chosen
    print(f"replay with --seed {drawn}")
    return drawn


@pytest.fixture(scope="session")
def variant() -> Callable[[str, str], Variant]:
    """Give a variant with real weights, pulled when needed: `variant("bge-small-en-v1.5", "int8")`."""
    store = ModelStore(MODELS, Catalogue.discover())

    def find(model: str, name: str) -> Variant:
        return store.resolve(model, name) if store.present(model, name) else store.pull(model, name)

    return find
