"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

DEFAULT_SERVER = "http://127.0.0.1:7474"

F = TypeVar("F", bound=Callable[..., Any])


def connected(command: F) -> F:
    """The options of every command that speaks to a controller."""
    for option in (_token, _server):
        command = option(command)
    return command


def output(command: F) -> F:
    return click.option(
        "--output",
        "-o",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        envvar="KYBERNATE_OUTPUT",
        help="Text for people or JSON for programs.",
    )(command)


def waiting(command: F) -> F:
    return click.option(
        "--wait/--no-wait",
        default=True,
        show_default=True,
        help="Wait for the end of the action, or only for its acceptance.",
    )(command)


def _urls(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for url in given:
        if not _is_url(url):
            raise click.BadParameter(f"{url!r} is no URL: write http://HOST:PORT or https://…")
    return given


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        whole = bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        return False
    return whole and url.scheme in {"http", "https"} and text.isprintable() and " " not in text


def _shown(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given and not given.isprintable():
        raise click.BadParameter("a token is one line; this one has a line break or the like in it")
    return given


def _server(command: F) -> F:
    return click.option(
        "--server",
        "servers",
        multiple=True,
        default=(DEFAULT_SERVER,),
        show_default=True,
        envvar="KYBERNATE_SERVER",
        callback=_urls,
        help="URL of a controller; several are tried in order (in the environment: with spaces).",
    )(command)


def _token(command: F) -> F:
    return click.option(
        "--token",
        envvar="KYBERNATE_TOKEN",
        callback=_shown,
        help="Bearer token, where the controllers want one; better in the environment.",
    )(command)
