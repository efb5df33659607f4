"""Durations as people write them. Pure."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_duration(value: object) -> float:
    """``30s``, ``5m``, ``1h30m``, ``14d`` to seconds. Bare numbers are refused: nobody can tell their unit."""
    if not isinstance(value, str):
        raise ValueError("write a duration with its unit, for example 30s, 5m, 2h or 14d")
    text = value.strip()
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise ValueError("not a duration; write for example 30s, 5m, 2h or 14d")
    return sum(float(number) * _SECONDS[unit] for number, unit in found)


def duration_text(seconds: float) -> str:
    """Seconds as a person would write them: ``15m``, ``3d``, ``1h30m``."""
    left, words = round(seconds, 3), ""
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, _SECONDS[unit])
        words += f"{number:.0f}{unit}" if number else ""
    return words + (f"{left * 1000:.0f}ms" if round(left, 3) else "") or "0s"
