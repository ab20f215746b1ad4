import os

import pytest

from tests.scoring import models

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama in float32, as a folder."""
    return models.save(tmp_path_factory.mktemp("llama"), "llama")
