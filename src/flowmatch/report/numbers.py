"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "−"
_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NONE = "–"
"""What stands in a table where there is no number."""


def significant(value: float | None, digits: int = 4) -> str:
    """A number to some significant digits, without a needless exponent: `0.01235`, `12,350`."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        mantissa, _, power = f"{value:.{digits - 1}e}".replace("-", MINUS).partition("e")
        return f"{mantissa}e{power.lstrip('+0').replace(MINUS + '0', MINUS)}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return _fixed(value, max(decimals, 0))


def decimals_for(values: Iterable[float | None]) -> int | None:
    """Decimals that show a column's smallest number to four digits, unless they differ too much.

    None where no number of decimals suits all: very large, very small, or nothing but zeros.
    """
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes or max(sizes) >= 1e9 or max(sizes) < 1e-5:
        return None
    smallest, largest = (math.floor(math.log10(s)) for s in (min(sizes), max(sizes)))
    return max(min(3 - smallest, 4 - largest), 0)


def with_spread(value: float | None, spread: float | None, decimals: int | None = None) -> str:
    """`1.230 ± 0.050`; with `decimals` None, to four significant digits."""
    if value is None or not math.isfinite(value):
        return significant(value)
    if decimals is None:
        decimals = decimals_for([value])
    text = significant(value) if decimals is None else _fixed(value, decimals)
    if spread is None or not math.isfinite(spread):
        return text
    rounds_to_zero = decimals is None or 0 < spread < 0.5 * 10**-decimals
    other = significant(spread, 2) if rounds_to_zero else _fixed(spread, decimals or 0)
    return f"{text} ± {other}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def scaled(value: float, unit: str = "", digits: int = 3) -> str:
    """A large quantity with its SI prefix: `1.23 TFLOP`, or `96k` without a unit."""
    for size, prefix in _LARGE:
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{value / size:.{digits}g}{' ' if unit else ''}{prefix}{unit}"
    return f"{value:.{digits}g} {unit}".strip()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 07 min`, `2 d 03 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def short(value: float) -> str:
    """A tick's label: `0.5`, `20k`, `1.5M`, `1e−5`."""
    if value == 0:
        return "0"
    for size, prefix in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.6g}{prefix}".replace("-", MINUS)
    text = f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.6g}"
    return text.replace("e-0", "e-").replace("-", MINUS)
