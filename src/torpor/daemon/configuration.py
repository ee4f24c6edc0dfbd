"""Settings from flags, the environment, torpor.toml and defaults, in that order of precedence.

Reads one file and nothing else; no clock, no tasks. The command line uses it too, to find the data directory of a running Torpor, so
it imports next to nothing.
"""

import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torpor.model.errors import BadSettings, InvalidRequest
from torpor.model.settings import NO_HISTORY, Settings

ENVIRONMENT_PREFIX = "TORPOR_"
CONFIG_VARIABLE = "TORPOR_CONFIG"
CONFIG_FILE_NAME = "torpor.toml"
SYSTEM_DATA_DIR = Path("/var/lib/torpor")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class _Given:
    """A value somebody gave, and where, in words for the error message."""

    value: object
    origin: str


def default_data_dir(environ: Mapping[str, str], uid: int | None = None) -> Path:
    """Where everything is kept unless said otherwise: /var/lib/torpor as root, else below the user's home."""
    if (os.geteuid() if uid is None else uid) == 0:
        return SYSTEM_DATA_DIR
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home) / ".local" / "share" / "torpor"


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """All settings, checked, with all paths and `public_host` filled in.

    `flags` and the file use the settings' names, the environment TORPOR_<NAME>. `file` is a torpor.toml that must be there; without
    it TORPOR_CONFIG names one, and without that <data_dir>/torpor.toml is read if it exists. Raises BadSettings, which names the
    setting, where its value came from, and the mend.
    """
    given: dict[str, _Given] = {}
    for name in _types():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if name in flags:
            given[name] = _Given(flags[name], f"--{name.replace('_', '-')}")
        elif environ.get(variable):
            given[name] = _Given(environ[variable], variable)
    for name in flags:
        _check_known(name, "the command line")

    if file is None and environ.get(CONFIG_VARIABLE):
        file = Path(environ[CONFIG_VARIABLE])
    implied = Path(str(given["data_dir"].value)) if "data_dir" in given else default_data_dir(environ)
    if file is not None:
        from_file = _read(file)
    else:
        file = implied / CONFIG_FILE_NAME
        from_file = _read(file) if _exists(file) else {}
        if "data_dir" in from_file:
            raise BadSettings(f"data_dir can't be set in {file}, which lies in the data directory", f"use --data-dir or {CONFIG_VARIABLE}")
    for name, value in from_file.items():
        _check_known(name, str(file))
        given.setdefault(name, _Given(value, str(file)))

    values = {name: _convert(name, item) for name, item in given.items()}
    return _build(values, given, environ)


def _build(values: dict[str, object], given: Mapping[str, _Given], environ: Mapping[str, str]) -> Settings:
    home = default_data_dir(environ)
    data_dir = os.path.abspath(os.path.expanduser(str(values.get("data_dir") or home)))
    values["data_dir"] = data_dir
    for name, below in (("postgres_home", "postgres"), ("image_home", "images")):
        values[name] = os.path.abspath(os.path.expanduser(str(values.get(name) or home / below)))
    if not str(values.get("history_store", "")).startswith("s3:") and values.get("history_store") != NO_HISTORY:
        values["history_store"] = os.path.abspath(os.path.expanduser(str(values.get("history_store") or Path(data_dir, "history"))))
    for name, file in (("key_file", "master.key"), ("pool_key_file", "pool.key")):
        values[name] = os.path.abspath(os.path.expanduser(str(values.get(name) or Path(data_dir, file))))
    if values.get("pg_bindir"):
        values["pg_bindir"] = os.path.abspath(os.path.expanduser(str(values["pg_bindir"])))
    if not values.get("public_host"):
        host = str(values.get("door_host", Settings.__dataclass_fields__["door_host"].default))
        # All addresses (0.0.0.0, ::) is a way to listen, not a place to connect to.
        values["public_host"] = host if host.strip("0.:*") else "127.0.0.1"
    try:
        return Settings(**values)  # type: ignore[arg-type]  # each value was converted to its field's type above
    except (BadSettings, InvalidRequest) as error:
        name = error.message.split(" ", 1)[0]
        if name not in given:
            raise BadSettings(error.message, error.hint) from None
        raise BadSettings(f"{error.message} (got {_show(given[name].value)} from {given[name].origin})", "change it there") from None


def _read(file: Path) -> dict[str, object]:
    import tomllib  # 20 ms that commands which read no file needn't pay

    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{file} is not valid TOML: {error}", "mend that line") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadSettings(f"{file} can't be read: {reason}", f"mend it, or point {CONFIG_VARIABLE} or --config at another file") from None


def _exists(file: Path) -> bool:
    """Whether the implied file is there. A data directory that can't be entered is reported by whoever opens it, with more to say."""
    try:
        return file.is_file()
    except OSError:
        return False


def _check_known(name: str, origin: str) -> None:
    if name in _types():
        return
    import difflib

    near = difflib.get_close_matches(name, _types(), n=1)
    hint = f"did you mean {near[0]}?" if near else "`torpor serve --help` lists the settings"
    raise BadSettings(f"{name[:80]!r} in {origin} is not a setting", hint)


def _types() -> dict[str, tuple[type, bool]]:
    """Each setting's type, and whether None (written "never") is one of its values."""
    hints = typing.get_type_hints(Settings)
    result: dict[str, tuple[type, bool]] = {}
    for field in fields(Settings):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            result[field.name] = (next(t for t in typing.get_args(hint) if t is not types.NoneType), True)
        else:
            result[field.name] = (hint, False)
    return result


def _convert(name: str, given: _Given) -> object:
    kind, optional = _types()[name]
    value = given.value
    if optional and isinstance(value, str) and value.strip().lower() == "never":
        return None
    converted = _from_text(kind, value.strip()) if isinstance(value, str) else _from_toml(kind, value)
    if converted is None:
        raise BadSettings(f"{name} can't be {_show(value)} (from {given.origin})", f"give {_expectation(kind, optional)}")
    return converted


def _from_text(kind: type, text: str) -> object | None:
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    if kind is str:
        return text
    try:
        number: int | float = int(text) if kind is int else float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number  # NaN passes no range check, and nothing means it


def _from_toml(kind: type, value: object) -> object | None:
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is float and isinstance(value, int | float):
        return None if math.isnan(value) else float(value)
    return value if isinstance(value, kind) else None


def _expectation(kind: type, optional: bool) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    return f'{words} or "never"' if optional else words


def _show(value: object) -> str:
    return repr(value)[:80]
