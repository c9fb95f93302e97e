"""Typed reading and atomic writing of simgd's files.

People write TOML, programs write JSON. Every file starts with a `format` and a `version`; types, ranges and units are
checked while it is read, and an error names the file, the place in it, what was found and what would be right. A file
is written under a temporary name and renamed, so nobody ever reads half of one.
"""

import gzip
import os
import re
import tempfile
import tomllib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from simgd import units
from simgd.errors import FileError, SimgdError

T = TypeVar("T")

VERSION = 1

#: Larger files than this are refused before they are parsed: memory stays bounded.
LARGEST_FILE_BYTES = 512 * units.MIB

#: No number that a machine or a network has is larger, or smaller and not 0; sums and products of such numbers stay
#: finite.
SMALLEST, LARGEST = 1e-24, 1e24

_READERS: dict[type, Callable[[Any], Any]] = {
    units.Rate: units.rate,
    units.Seconds: units.seconds,
    units.Bytes: units.nbytes,
    units.FlopRate: units.flop_rate,
}


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything that a file can hold: frozen, compared by content, checked when made.

    A subclass checks itself in ``__post_init__`` and raises a SimgdError.
    """


class Document(Value, frozen=True, kw_only=True, tag_field="format"):
    """Base of what a whole file holds; the tag is the file's ``format``."""


def read(path: str | Path, kind: type[T]) -> T:
    """Return the *kind* that the TOML or JSON file at *path* holds; ``.json.gz`` is read too.

    Raises FileError with the place in the file, or the error of the value that the file describes, with the file's
    name before it.
    """
    return parse(read_bytes(path), kind, where=str(path), toml=str(path).endswith(".toml"))


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file, unpacked if its name ends in ``.gz``."""
    try:
        if Path(path).is_dir():
            raise FileError(f"{path}: is a folder; name a file")
        if not Path(path).is_file():
            raise FileError(f"{path}: there is no such file")
        if os.path.getsize(path) > LARGEST_FILE_BYTES:
            raise FileError(f"{path}: is larger than {units.show_bytes(LARGEST_FILE_BYTES)}")
        if not str(path).endswith(".gz"):
            return Path(path).read_bytes()
        with gzip.open(path) as packed:
            content = packed.read(LARGEST_FILE_BYTES + 1)
    except FileError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be read: {reason}") from None
    if len(content) > LARGEST_FILE_BYTES:
        raise FileError(f"{path}: unpacks to more than {units.show_bytes(LARGEST_FILE_BYTES)}")
    return content


def parse(content: bytes, kind: type[T], *, where: str, toml: bool) -> T:
    """Return the *kind* that *content* describes; *where* names the content in errors."""
    try:
        raw = tomllib.loads(content.decode()) if toml else msgspec.json.decode(content)
    except UnicodeDecodeError:
        raise FileError(f"{where}: is not text in UTF-8") from None
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise FileError(f"{where}: is not {'TOML' if toml else 'JSON'}: {_one_line(error)}") from None
    except RecursionError:
        raise FileError(f"{where}: cannot be read: lists or tables in it are nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise FileError(f"{where}: cannot be read: {_one_line(error)}") from None
    return convert(raw, kind, where=where)


def convert(raw: Any, kind: type[T], *, where: str) -> T:
    """Return the *kind* that plain data describe; *where* names them in errors."""
    if isinstance(kind, type) and issubclass(kind, Document):
        raw = _without_header(raw, kind, where)
    try:
        return msgspec.convert(raw, type=kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise FileError(f"{where}: {_place_first(_one_line(error))}") from None
    except (RecursionError, OverflowError) as error:
        raise FileError(f"{where}: cannot be read: {_one_line(error)}") from None


def plain(value: Any) -> Any:
    """Return *value* as dictionaries, lists, numbers and text; a document gets its format and version in front."""
    raw = msgspec.to_builtins(value, enc_hook=_encode)
    if isinstance(value, Document):
        return {"format": raw.pop("format"), "version": VERSION, **raw}
    return raw


def to_json(value: Any) -> bytes:
    """Return *value* as indented JSON, one key a line; a list of numbers stays on one line, since columns are long."""
    text = msgspec.json.format(msgspec.json.encode(plain(value)), indent=1)
    return _NUMBERS.sub(lambda found: b" ".join(found[0].split()), text) + b"\n"


def to_toml(value: Any) -> bytes:
    """Return *value* as TOML that people can edit: a section for each table and list entry, one line for each value.

    Libraries that write TOML spread each short list over many lines, hence these few of our own; the reader is
    Python's.
    """
    raw = plain(value)
    sections = {key: found for key, found in raw.items() if _is_section(found)}
    lines = [f"{_key(key)} = {_toml(found)}" for key, found in raw.items() if key not in sections]
    for key, found in sections.items():
        for table in found if isinstance(found, (list, tuple)) else [found]:
            lines += ["", f"[[{_key(key)}]]" if isinstance(found, (list, tuple)) else f"[{_key(key)}]"]
            lines += [f"{_key(name)} = {_toml(inner)}" for name, inner in table.items()]
    return ("\n".join(lines) + "\n").encode()


def _is_section(raw: Any) -> bool:
    return isinstance(raw, dict) or (
        isinstance(raw, (list, tuple)) and bool(raw) and all(isinstance(row, dict) for row in raw)
    )


def _toml(raw: Any) -> str:
    match raw:
        case dict():
            return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in raw.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_toml(inner) for inner in raw) + "]"
        case float() if raw.is_integer() and abs(raw) < 2**53:
            return str(int(raw))
        case str():
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
            return msgspec.json.encode(raw).decode().replace("\x7f", "\\u007f")
        case _:
            return msgspec.json.encode(raw).decode()


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def write(path: str | Path, value: Any) -> None:
    """Write *value* as TOML, JSON or ``.json.gz``, by the end of the name."""
    write_bytes(path, to_toml(value) if str(path).endswith(".toml") else to_json(value))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write *content* under a temporary name beside *path* and rename it; pack it if the name ends in ``.gz``."""
    path = Path(path)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from None


def _without_header(raw: Any, kind: type[Document], where: str) -> Any:
    """Say first whether this is the right sort of file at all: every other message would only confuse."""
    wanted = kind.__struct_config__.tag
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != wanted:
        has = "has no `format`" if found is None else f"holds {str(found)[:60]!r}"
        raise FileError(f"{where}: {has}; it should start with format = {wanted!r}")
    if raw.get("version") != VERSION:
        raise FileError(f"{where}: version is {str(raw.get('version'))[:40]}; this simgd reads version {VERSION}")
    return {key: value for key, value in raw.items() if key != "version"}


def _decode(kind: type, raw: Any) -> Any:
    return _READERS[kind](raw)


def _encode(value: Any) -> Any:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"a file cannot hold a {type(value).__name__}")


_NUMBERS = re.compile(rb"\[\s+(?:-?[\d.eE+-]+,\s+)*-?[\d.eE+-]+\s+\]")

_PLACE = re.compile(r"(?s)(.*?)(?: - at `\$\.?(.*?)`)?")


def _place_first(message: str) -> str:
    match = _PLACE.fullmatch(message)
    return f"{match[2]}: {match[1]}" if match and match[2] else message


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def check_positive(error: type[SimgdError], where: str, /, **numbers: float) -> None:
    """Raise *error* if one of the *numbers* is not above 0, or beyond what anything has."""
    for name, number in numbers.items():
        if not number > 0:
            raise error(f"{where}: {name} is {number}; it must be above 0")
        if not SMALLEST <= number <= LARGEST:
            raise error(f"{where}: {name} is {_brief(number)}; it must be from {SMALLEST} to {LARGEST}")


def check_not_negative(error: type[SimgdError], where: str, /, **numbers: float) -> None:
    """Raise *error* if one of the *numbers* is below 0, or beyond what anything has."""
    for name, number in numbers.items():
        if not number >= 0:
            raise error(f"{where}: {name} is {number}; it must be 0 or more")
        if number > LARGEST:
            raise error(f"{where}: {name} is {_brief(number)}; it must be at most {LARGEST}")


def _brief(number: float) -> str:
    return f"a number of {len(str(number))} digits" if isinstance(number, int) else str(number)


def check_distinct(error: type[SimgdError], where: str, what: str, names: Sequence[str]) -> None:
    """Raise *error* if one of the *names* stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise error(f"{where}: {what} {name!r} stands twice")
        seen.add(name)
