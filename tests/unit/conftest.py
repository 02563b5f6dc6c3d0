"""What several unit tests are given. Hypothesis is told which examples to try before any test names
it.
"""

from collections.abc import Iterator

import pytest

import tests.support.examples  # noqa: F401 - its import is what counts
from tests.support.rest_server import RestServer


@pytest.fixture
def server() -> Iterator[RestServer]:
    running = RestServer()
    yield running
    running.close()
