"""Tables in Markdown of whatever was measured: a row of figures each, nested ones side by side."""

from __future__ import annotations

from typing import Any

__all__ = ["table"]


def table(title: str, value: Any) -> str:
    """Return one table of a list of rows, or of one row; series that are too long are left out."""
    if not isinstance(value, list):
        value = (
            [{"": name, "value": one} for name, one in _flat(value if value else {}).items()]
            if isinstance(value, dict)
            else [{title: value}]
        )
    rows = [_flat(row) for row in value]
    if not rows or len(rows) > 50:
        return f"{title}: {len(rows)} rows"
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join([title, "", *lines])


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name} ")
        else:
            flat[prefix + name] = value
    return flat


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
