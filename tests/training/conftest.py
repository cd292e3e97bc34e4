"""The base model that the tests of training start from."""

from pathlib import Path

import pytest
import tiny

from osdhuman_jax.weights import random_restorer, save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with random weights; not to be changed."""
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, tiny.MODEL, random_restorer(tiny.MODEL, 0))
    return folder
