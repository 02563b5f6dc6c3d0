"""Settings of a program: from its flags, then its environment, then a TOML file, then defaults.

A program's settings are a frozen struct; a field may be such a struct in turn. A string below
each field says what it is for and becomes the flag's help. A field `servers` of a field `bus` is
`--bus-servers`, `KYBERNATE_BUS_SERVERS`, and `servers` in the section `[bus]` of the file. Lists
are separated by commas where there is only text.

An unknown key is an error in the file and among the flags. Not in the environment: Kubernetes
puts variables for every service of a namespace there.
"""

import ast
import difflib
import inspect
import itertools
import os
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec

PREFIX = "KYBERNATE_"

S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(ValueError):
    """A setting is unknown or has a value it cannot have; the message names the place."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf of a settings struct."""

    path: tuple[str, ...]
    type: Any
    default: Any
    help: str

    @property
    def name(self) -> str:
        """The name among flags as Python has them: `bus_servers`."""
        return "_".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def key(self) -> str:
        return ".".join(self.path)


def settings_of(of: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """All leaves, for making flags and documentation."""
    return tuple(_leaves(of, ()))


def load(
    of: type[S],
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """The settings; a flag that is None was not given. SettingsError says what to put right."""
    environment = os.environ if environment is None else environment
    leaves = settings_of(of)
    merged = _from_file(of, file) if file else {}
    for leaf in leaves:
        if (text := environment.get(leaf.variable)) is not None:
            _put(merged, leaf, _converted(leaf, text, f"the environment's {leaf.variable}"))
    known = {leaf.name: leaf for leaf in leaves}
    for name, value in (flags or {}).items():
        if name not in known:
            raise SettingsError(f"unknown setting {name}{_meant(name, known)}")
        if value is not None:
            leaf = known[name]
            _put(merged, leaf, _converted(leaf, value, leaf.flag))
    return _whole(of, merged)


def _whole(of: type[S], merged: dict[str, Any]) -> S:
    try:
        return msgspec.convert(merged, of, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the settings do not fit: {error}") from error


def _from_file(of: type[msgspec.Struct], file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read the settings in {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from error
    return _checked(of, content, file, ())


def _checked(
    of: type[msgspec.Struct], section: Mapping[str, Any], file: Path, above: tuple[str, ...]
) -> dict[str, Any]:
    """The section with its values converted; an error for keys that nothing has."""
    leaves = {leaf.path[0]: leaf for leaf in _leaves(of, ()) if len(leaf.path) == 1}
    sections = dict(_sections(of))
    checked: dict[str, Any] = {}
    for key, value in section.items():
        where = f"{'.'.join((*above, key))} in {file}"
        if key in sections and isinstance(value, dict):
            checked[key] = _checked(sections[key], value, file, (*above, key))
        elif key in leaves:
            checked[key] = _converted(leaves[key], value, where)
        else:
            raise SettingsError(f"unknown setting {where}{_meant(key, [*leaves, *sections])}")
    return checked


def _converted(leaf: Setting, value: Any, where: str) -> Any:
    if isinstance(value, str) and get_origin(leaf.type) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, leaf.type, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where} cannot be {value!r}: {error}") from error


def _put(merged: dict[str, Any], leaf: Setting, value: Any) -> None:
    section = merged
    for name in leaf.path[:-1]:
        section = section.setdefault(name, {})
    section[leaf.path[-1]] = value


def _decode(of: type, value: Any) -> Any:
    if of is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"expected {of.__name__}, got {type(value).__name__}")


def _leaves(of: type[msgspec.Struct], above: tuple[str, ...]) -> Iterator[Setting]:
    hints = get_type_hints(of, include_extras=True)
    sections = dict(_sections(of))
    helps = _helps(of)
    for field in msgspec.structs.fields(of):
        path = (*above, field.name)
        if field.name in sections:
            yield from _leaves(sections[field.name], path)
            continue
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        yield Setting(
            path=path, type=hints[field.name], default=default, help=helps.get(field.name, "")
        )


def _sections(of: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for name, hint in get_type_hints(of).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield name, hint


def _helps(of: type[msgspec.Struct]) -> dict[str, str]:
    """The strings that stand below the fields in the source."""
    found: dict[str, str] = {}
    for base in reversed(of.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def _meant(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
