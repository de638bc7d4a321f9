"""Grouped horizontal bars as SVG, without a library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_COLOURS = ("#0b6e99", "#e0823d", "#6a994e", "#9d4edd", "#bc4749", "#7d8597")
_LEFT, _WIDTH, _BAR, _GAP, _RIGHT = 350, 420, 14, 10, 90


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """One group of bars per entry, one bar per peer; values are not negative."""
    peers = list(dict.fromkeys(peer for values in groups.values() for peer in values))
    colour = {peer: _COLOURS[i % len(_COLOURS)] for i, peer in enumerate(peers)}
    top = max((value for values in groups.values() for value in values.values()), default=1.0) or 1.0
    parts = [_text(10, 20, title, size=14, bold=True)]
    y = 34
    for i, peer in enumerate(peers):
        x = 10 + i % 3 * 230
        parts.append(
            f'<rect x="{x}" y="{y + i // 3 * 18}" width="12" height="12" fill="{colour[peer]}"/>'
        )
        parts.append(_text(x + 17, y + i // 3 * 18 + 10, peer))
    y += (len(peers) + 2) // 3 * 18 + _GAP
    for name, values in groups.items():
        height = len(values) * _BAR
        parts.append(_text(_LEFT - 8, y + height / 2 + 4, name, anchor="end"))
        for peer, value in values.items():
            length = value / top * _WIDTH
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR - 2}"'
                f' fill="{colour[peer]}"/>'
            )
            parts.append(_text(_LEFT + length + 5, y + _BAR - 4, f"{value:.3g} {unit}"))
            y += _BAR
        y += _GAP
    size = _LEFT + _WIDTH + _RIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{y}"'
        f' viewBox="0 0 {size} {y}" font-family="sans-serif">'
        f'<rect width="{size}" height="{y}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, words: str, *, size: int = 11, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}'
        f' fill="#222222">{escape(words)}</text>'
    )
