"""The toy feed, written once."""

from pathlib import Path

import pytest

from tests.support.toy import write_toy


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return write_toy(tmp_path_factory.mktemp("toy"))
