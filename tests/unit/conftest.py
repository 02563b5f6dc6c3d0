"""What several unit tests are given."""

from collections.abc import Iterator

import pytest

from tests.support.rest_server import RestServer


@pytest.fixture
def server() -> Iterator[RestServer]:
    running = RestServer()
    yield running
    running.close()
