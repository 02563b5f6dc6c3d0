"""containerd's configuration with the runtimes of Kybernate in it, and without them again. Pure.

The entries stand in a block between two marks, behind everything else, or in a file of their own.
Taking the block out leaves every byte as it was: where the installer had to end a last line or to
make the file, the first mark says so. A file of its own is for configurations of version 3 alone:
containerd 1 replaces the whole section of a plugin by that of an imported file.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath as Path
from typing import Any, Final

from schemas.base import Record

RUNTIME_TYPE: Final = "io.containerd.runc.v2"
ANNOTATIONS: Final = "kybernate.io/*"
SECTIONS: Final = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""The plugin that holds the runtimes, by version of the configuration."""
DROP_IN: Final = "kybernate.toml"

_BEGIN = "# >>> kybernate node install: do not edit, `kybernate node uninstall` takes it out"
_LINE_ENDED = " (the line before was ended)"
_FILE_MADE = " (the file was made)"
_END = "# <<< kybernate node install"
_BLOCK = re.compile(
    rf"^{re.escape(_BEGIN)}(?P<note>[^\n]*)\n(?:.*\n)*?{re.escape(_END)}\n", re.MULTILINE
)
_ANNOTATIONS = ("pod_annotations", "container_annotations")
_NOT_COPIED = {"BinaryName", "CriuImagePath", "CriuPath", "CriuWorkPath"}
_KEPT_SETTINGS = (
    "base_runtime_spec",
    "cgroup_writable",
    "cni_conf_dir",
    "cni_max_conf_num",
    "io_type",
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
    "sandbox_mode",
    "sandboxer",
    "snapshotter",
)


class Unusable(Exception):
    """A configuration that the installer cannot extend."""


class Runtime(Record, frozen=True, kw_only=True):
    """An entry to make: its name and the program that containerd's shim calls."""

    name: str
    binary: Path


class Configuration(Record, frozen=True, kw_only=True):
    """What a configuration says that matters here."""

    version: int
    imports: tuple[str, ...] = ()
    runtimes: Mapping[str, Mapping[str, Any]] = {}
    default: str = "runc"
    state: str = ""
    """The folder of what runs, where it is told."""
    disabled: bool = False
    """Whether the plugin that holds the runtimes is switched off: Kubernetes is not served."""

    @property
    def base(self) -> Mapping[str, Any]:
        """The runtime that pods have now; ours are like it."""
        return self.runtimes.get("runc") or self.runtimes.get(self.default) or {}


def read(text: str) -> Configuration:
    """A configuration as containerd reads it, or as `containerd config dump` shows it."""
    value = _parsed(text)
    version = value.get("version", 1)
    if version not in SECTIONS:
        raise Unusable(f"its version is {version}; known are {', '.join(map(str, SECTIONS))}")
    containerd = _cri(value).get("containerd", {})
    return Configuration(
        version=version,
        imports=tuple(value.get("imports", ())),
        runtimes=containerd.get("runtimes", {}),
        default=containerd.get("default_runtime_name", "runc"),
        state=value.get("state", ""),
        disabled=bool({*SECTIONS.values()} & {*value.get("disabled_plugins", ())}),
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"it is no TOML: {error}") from error


def _cri(value: Mapping[str, Any]) -> Mapping[str, Any]:
    plugins = value.get("plugins", {})
    for section in reversed(SECTIONS.values()):
        if section in plugins:
            found: Mapping[str, Any] = plugins[section]
            return found
    return {}


def holds_section(text: str) -> bool:
    """Whether a file has a section of the plugin that holds the runtimes."""
    return bool(_cri(_parsed(text)))


def read_without_block(text: str) -> Configuration:
    """What a file says without what we have put into it."""
    return read(without_block(text, "") or "")


def changed(before: str, after: str) -> list[str]:
    """The settings, by their full names, that the one text has otherwise than the other.

    Our own entries and the list of files do not count, nor does an empty value for a missing one.
    """
    was, is_now = (dict(_flat("", {**_parsed(text), "imports": []})) for text in (before, after))
    return sorted(
        name for name, value in was.items() if (is_now.get(name) or None) != (value or None)
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if ".runtimes.kybernate" in name:
        return
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _flat(f"{name}.{key}", held)
    else:
        yield name.removeprefix("."), value


def entries(version: int, runtimes: Iterable[Runtime], base: Mapping[str, Any]) -> str:
    """The runtimes' tables, in the words of that version, and like the one that pods have now."""
    tables = []
    for runtime in runtimes:
        annotations = {
            name: [*dict.fromkeys((*base.get(name, ()), ANNOTATIONS))] for name in _ANNOTATIONS
        }
        options = _options(base) | {"BinaryName": str(runtime.binary)}
        tables += _table(version, runtime.name, _settings(base) | annotations, options)
    return "\n".join(tables) + "\n"


def default_entry(version: int, base: Mapping[str, Any]) -> str:
    """The table of `runc`, for a file without any: containerd 1 has it by itself only as long as
    no other runtime is named.
    """
    annotations = {name: base[name] for name in _ANNOTATIONS if base.get(name)}
    tables = _table(version, "runc", _settings(base) | annotations, _options(base))
    return "\n".join(tables) + "\n"


def _table(
    version: int, name: str, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> list[str]:
    table = f"plugins.{json.dumps(SECTIONS[version])}.containerd.runtimes.{name}"
    return [f"[{table}]", *_lines(settings), f"[{table}.options]", *_lines(options)]


def _settings(base: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: base[name] for name in _KEPT_SETTINGS if base.get(name)}
    return {"runtime_type": RUNTIME_TYPE, **kept}


def _options(base: Mapping[str, Any]) -> dict[str, Any]:
    """Above all the driver of the cgroups: pods fail with another one than kubelet's."""
    options = base.get("options", {})
    return {name: value for name, value in options.items() if value and name not in _NOT_COPIED}


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"  {name} = {json.dumps(value)}" for name, value in values.items()]


def with_block(text: str | None, tables: str, skeleton: str) -> str:
    """The file with the tables in it, whatever tables of ours it had; None: there is no file."""
    if text is not None and (found := _BLOCK.search(text)):
        block = _block(found["note"], tables)
        return f"{text[: found.start()]}{block}{text[found.end() :]}"
    if text is None:
        return skeleton + _block(_FILE_MADE, tables)
    if text and not text.endswith("\n"):
        return f"{text}\n" + _block(_LINE_ENDED, tables)
    return text + _block("", tables)


def without_block(text: str, skeleton: str) -> str | None:
    """The file as it was; None: it was not there."""
    found = _BLOCK.search(text)
    if found is None:
        return text
    before, after = text[: found.start()], text[found.end() :]
    if found["note"] == _FILE_MADE and (before, after) == (skeleton, ""):
        return None
    if found["note"] == _LINE_ENDED and not after:
        before = before.removesuffix("\n")
    return before + after


def _block(note: str, tables: str) -> str:
    return f"{_BEGIN}{note}\n{tables}{_END}\n"


def rendered(config: str, tables: str) -> str:
    """What a distribution makes of its template once the tables stand in it."""
    return with_block(without_block(config, "") or "", tables, "")


def drop_in(version: int, tables: str) -> str:
    """The file of our own."""
    return f"version = {version}\n{_block(_FILE_MADE, tables)}"


def drop_in_folder(configuration: Configuration) -> Path | None:
    """Where a file of our own is read from and added to the rest; None: nowhere."""
    if configuration.version < max(SECTIONS):
        return None
    for pattern in map(Path, configuration.imports):
        if pattern.is_absolute() and pattern.name == "*.toml" and "*" not in str(pattern.parent):
            return pattern.parent
    return None
