"""Units, parsed at the edge and printed at the edge; inside, everything is SI and names carry the unit.

Decimal prefixes are powers of 1,000 and binary ones (Ki, Mi, Gi) powers of 1,024, for bytes and for rates.
"""

import math
import re
from fractions import Fraction

from simgd.errors import UnitError

PS_PER_S = 10**12

KIB, MIB, GIB = 2**10, 2**20, 2**30

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.ASCII)
_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)}
_BYTES = {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
_RATES = {f"{unit}/s": Fraction(factor) for unit, factor in _BYTES.items()} | {
    f"{prefix}b/s": Fraction(factor, 8) for prefix, factor in _DECIMAL.items()
}
_FLOPS = {f"{prefix}FLOP/s": factor for prefix, factor in _DECIMAL.items()}
_SECONDS = {
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
    "ps": Fraction(1, 10**12),
}


class Rate(float):
    """Bytes per second; in a file a number or text such as "25 GB/s"."""


class Seconds(float):
    """Seconds; in a file a number or text such as "1.5 us"."""


class Bytes(int):
    """Whole bytes; in a file a number or text such as "16 GB"."""


class FlopRate(float):
    """Floating-point operations per second; in a file a number or text such as "10.6 TFLOP/s"."""


def rate(value: str | float) -> Rate:
    """Return bytes per second.

    >>> rate("400 Gb/s")
    50000000000.0
    >>> rate("25 Gps")
    Traceback (most recent call last):
    simgd.errors.UnitError: '25 Gps' is not a rate; write a number and GB/s, GiB/s or Gb/s
    """
    return Rate(_read(value, _RATES, "a rate", "GB/s, GiB/s or Gb/s"))


def seconds(value: str | float) -> Seconds:
    """Return seconds.

    >>> seconds("1.5 us")
    1.5e-06
    """
    return Seconds(_read(value, _SECONDS, "a time", "s, ms, us or ns"))


def nbytes(value: str | float) -> Bytes:
    """Return whole bytes; a bare number counts bytes.

    >>> nbytes("25MB"), nbytes("25MiB")
    (25000000, 26214400)
    """
    found = _read(value, _BYTES | {"": 1}, "a size", "B, kB, MB, GB, KiB, MiB or GiB")
    if found != int(found):
        raise UnitError(f"{value!r} is not a whole number of bytes")
    return Bytes(int(found))


#: More message sizes than this are a slip of the pen.
MOST_SIZES = 10_000


def sizes(text: str) -> list[int]:
    """Return the sizes that *text* lists ("64KiB,1MiB") or spans ("8B:1GiB:x2": each twice the one before).

    >>> sizes("64KiB,1MiB"), sizes("8B:64B:x2"), sizes("1kB:10kB:x3")
    ([65536, 1048576], [8, 16, 32, 64], [1000, 3000, 9000])
    """
    advice = "write sizes such as 64KiB,1MiB or a span such as 8B:1GiB:x2"
    parts = text.split(":")
    if len(parts) == 1:
        return [int(nbytes(part)) for part in text.split(",")]
    if len(parts) != 3 or not parts[2].startswith("x"):
        raise UnitError(f"{text[:60]!r} is not a span of sizes; {advice}")
    first, last = int(nbytes(parts[0])), int(nbytes(parts[1]))
    try:
        factor = float(parts[2][1:])
    except ValueError:
        factor = 0.0
    if not 1 < factor < math.inf or not 0 < first <= last:
        raise UnitError(f"{text[:60]!r} does not grow from a size above 0; {advice}")
    if math.log(last / first) > MOST_SIZES * math.log(factor):
        raise UnitError(f"{text[:60]!r} has more than {MOST_SIZES} sizes; {advice}")
    found, size = [first], first * factor
    while size <= last:
        found.append(round(size))
        size *= factor
    return list(dict.fromkeys(found))


def counts(text: str, what: str) -> tuple[int, ...]:
    """Return whole numbers listed by commas; *what* names them in errors.

    >>> counts("1,2,4", "--ranks")
    (1, 2, 4)
    >>> counts("1,x", "--ranks")
    Traceback (most recent call last):
    simgd.errors.UnitError: --ranks '1,x': 'x' is not a whole number of 0 or more; write 1,2,4,8
    """
    found = []
    for part in text.split(","):
        digits = part.strip()
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
            raise UnitError(f"{what} {text[:40]!r}: {digits[:40]!r} is not a whole number of 0 or more; write 1,2,4,8")
        found.append(int(digits))
    return tuple(found)


def flop_rate(value: str | float) -> FlopRate:
    """Return floating-point operations per second.

    >>> flop_rate("10.6 TFLOP/s")
    10600000000000.0
    """
    return FlopRate(_read(value, _FLOPS, "an arithmetic rate", "GFLOP/s or TFLOP/s"))


def _read(value: str | float, factors: "dict[str, Fraction] | dict[str, int]", what: str, units: str) -> float:
    advice = f"write a number and {units}"
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None or match[2] not in factors or len(value) > 40:
            raise UnitError(f"{value[:40]!r} is not {what}; {advice}")
        # A plain float first: the exact fraction of "1e999999999" would take all memory.
        plain = float(match[1].replace("_", ""))
        if not math.isfinite(plain):
            raise UnitError(f"{value!r} is not {what}; {advice}")
        found = _float(Fraction(repr(plain)) * factors[match[2]]) if abs(plain) > 1e-300 else plain
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = _float(value)
    else:
        raise UnitError(f"{value!r} is not {what}; {advice}")
    if not math.isfinite(found) or found < 0:
        raise UnitError(f"{str(value)[:40]!r} is not {what} of 0 or more; {advice}")
    return found


def _float(value: "Fraction | float") -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def picoseconds(value_s: float) -> int:
    """Return *value_s* on the simulator's clock, which counts whole picoseconds.

    Raises UnitError if that is no number.
    """
    if not math.isfinite(value_s * PS_PER_S):
        raise UnitError(f"a cost of {value_s} s is more than any clock counts")
    return round(value_s * PS_PER_S)


def scalar(text: str) -> str | int | float | bool:
    """Return what a value of NAME=VALUE stands for.

    >>> scalar("3"), scalar("1e-3"), scalar("true"), scalar("relu")
    (3, 0.001, True, 'relu')
    """
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def show_seconds(value_s: float) -> str:
    """Return a time with three digits and a fitting unit.

    >>> show_seconds(0.012345), show_seconds(0.0)
    ('12.3 ms', '0 s')
    """
    return _show(value_s, [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")])


def show_bytes(value: float) -> str:
    """Return a size with three digits and a decimal unit.

    >>> show_bytes(53_000_000), show_bytes(12)
    ('53 MB', '12 B')
    """
    return _show(value, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])


def show_rate(value: float) -> str:
    """Return a rate with three digits.

    >>> show_rate(18.5e9)
    '18.5 GB/s'
    """
    return _show(value, [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")])


def _show(value: float, units: list[tuple[float, str]]) -> str:
    for factor, unit in units:
        # 3 digits round up at 0.9995 of the next unit
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)} {unit}"
    factor, unit = units[-1]
    return f"{_digits(value / factor)} {unit}" if value else f"0 {units[0][1] if unit == 'ns' else unit}"


def _digits(value: float) -> str:
    whole = f"{value:.3g}"
    return f"{value:.0f}" if "e" in whole else whole
