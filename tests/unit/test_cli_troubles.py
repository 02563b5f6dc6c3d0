"""What is wrong with a service's surroundings reaches its user in words, never as a trace."""

import socket

from click.testing import CliRunner

from kybernate.cli.program import program


def test_an_address_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        given = ["controller", "--listen", listen, "--nats", "nats://127.0.0.1:1"]
        result = CliRunner().invoke(program, given)

    assert result.exit_code == 1
    assert f"cannot listen on {listen}" in result.output
    assert "--listen" in result.output
    assert "Traceback" not in result.output


def test_an_address_that_is_none_is_told() -> None:
    result = CliRunner().invoke(program, ["controller", "--listen", "nowhere"])

    assert result.exit_code == 1
    assert "HOST:PORT" in result.output
