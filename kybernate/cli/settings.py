"""Settings of the services: flags first, then the environment, then a TOML file, then defaults.

The file's keys are the long options without their dashes; a table named after a command holds
for that command alone and goes before what stands outside:

    nats = ["tls://one:4222", "tls://two:4222"]
    nats-credentials = "/etc/kybernate/nats.creds"
    [worker]
    node = "gpu-7"
"""

import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from kybernate.bus.port import DEFAULT_SERVER as DEFAULT_NATS
from kybernate.bus.port import BusSettings

DEFAULT_LISTEN = "127.0.0.1:7474"

F = TypeVar("F", bound=Callable[..., Any])

_file = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def option(*names: str, env: str, **more: Any) -> Callable[[F], F]:
    return click.option(*names, envvar=f"KYBERNATE_{env}", show_envvar=True, **more)


def service(command: F) -> F:
    """What every service can be told."""
    for each in (_otlp, _log_format, _log_level, _config):
        command = each(command)
    return command


def bus(command: F) -> F:
    """How a service reaches NATS."""
    for each in (_nats_key, _nats_cert, _nats_ca, _nats_credentials, _nats):
        command = each(command)
    return command


def bus_settings(given: Mapping[str, Any]) -> BusSettings:
    return BusSettings(
        servers=given["nats"],
        credentials=given["nats_credentials"],
        tls_ca=given["nats_ca"],
        tls_cert=given["nats_cert"],
        tls_key=given["nats_key"],
    )


def _load(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        given = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not TOML: {error}", ctx) from error
    tables = {key: value for key, value in given.items() if isinstance(value, dict)}
    common = {key: value for key, value in given.items() if key not in tables}
    options = _options_of_services()
    if strange := _strange(common, tables, options):
        raise click.BadParameter(f"{path} has unknown settings: {', '.join(strange)}", ctx)
    name = ctx.command.name or ""
    mine, chosen = options[name], common | tables.get(name, {})
    ctx.default_map = {
        str(mine[key].name): _several(mine[key], value)
        for key, value in chosen.items()
        if key in mine
    }


def _options_of_services() -> dict[str, dict[str, click.Parameter]]:
    """What may stand in the file, by the commands that take it."""
    from kybernate.cli import services  # noqa: PLC0415 - they are made with what is here

    return {
        str(command.name): {
            option.removeprefix("--"): parameter
            for parameter in command.params
            for option in parameter.opts
            if parameter.expose_value
        }
        for command in (services.controller, services.worker, services.up)
    }


def _strange(
    common: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Mapping[str, click.Parameter]],
) -> list[str]:
    anywhere = set().union(*options.values())
    wrong = {f"[{name}]" for name in tables.keys() - options.keys()}
    for name in tables.keys() & options.keys():
        wrong |= tables[name].keys() - options[name].keys()
    return sorted(wrong | (common.keys() - anywhere))


def _several(option: click.Parameter, value: Any) -> Any:
    """A single value stands for a list of one, as a single flag does."""
    return [value] if option.multiple and not isinstance(value, list) else value


_config = click.option(
    "--config",
    type=_file,
    is_eager=True,
    expose_value=False,
    callback=_load,
    envvar="KYBERNATE_CONFIG",
    show_envvar=True,
    help="TOML file with settings; flags and environment go first.",
)
_log_level = option(
    "--log-level",
    env="LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
_log_format = option(
    "--log-format",
    env="LOG_FORMAT",
    type=click.Choice(["json", "text"]),
    default=lambda: "text" if sys.stderr.isatty() else "json",
    show_default="json, on a terminal text",
)
_otlp = option(
    "--otlp-endpoint",
    env="OTLP_ENDPOINT",
    default="",
    metavar="URL",
    help="OTLP/HTTP receiver of traces, for example http://tempo:4318.",
)
_nats = option(
    "--nats",
    env="NATS",
    multiple=True,
    default=(DEFAULT_NATS,),
    show_default=True,
    metavar="URL",
    help="NATS server; several are tried in turn (in the environment: with spaces).",
)
_nats_credentials = option(
    "--nats-credentials", env="NATS_CREDENTIALS", type=_file, help="NATS credentials (JWT, key)."
)
_nats_ca = option(
    "--nats-ca", env="NATS_CA", type=_file, help="Authority of the servers' certificate, PEM."
)
_nats_cert = option("--nats-cert", env="NATS_CERT", type=_file, help="Own certificate, PEM.")
_nats_key = option("--nats-key", env="NATS_KEY", type=_file, help="Key of the certificate, PEM.")
