"""Curves as inline SVG, without libraries and scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
POINTS = 240  # per curve; more would be closer than a pixel

Curve = Sequence[tuple[float, float]]


def chart(title: str, curves: Mapping[str, Curve], unit: str = "") -> str:
    """A figure with one line per curve over the steps, and a legend with the last values.

    Points that are not finite leave a gap.
    """
    drawn = {name: thinned(curve) for name, curve in curves.items()}
    finite = [(x, y) for curve in drawn.values() for x, y in curve if math.isfinite(y)]
    if not finite:
        return ""
    low_x, high_x = min(x for x, _ in finite), max(x for x, _ in finite)
    ticks = ruler(min(y for _, y in finite), max(y for _, y in finite))
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - low_x) / (high_x - low_x) if high_x > low_x else 0.5)

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{down(y) + 3.5:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in ticks
    )
    steps = sorted({low_x, (low_x + high_x) / 2, high_x})
    grid += "".join(
        f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="{_anchor(place, len(steps))}">{x:.6g}</text>'
        for place, x in enumerate(steps)
    )
    lines = "".join(
        f'<path class="c{number % 6}" d="{_path([(across(x), down(y)) for x, y in curve])}"/>'
        for number, curve in enumerate(drawn.values())
    )
    legend = "".join(
        f'<span><i class="c{number % 6}"></i>{escape(name)} <b>{_last(curves[name])}</b></span>'
        for number, name in enumerate(drawn)
    )
    said = escape(f"{title}: {', '.join(drawn)} over steps {low_x:g} to {high_x:g}")
    return (
        f"<figure><figcaption>{escape(title)}{f' <small>{escape(unit)}</small>' if unit else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{grid}{lines}</svg>'
        f'<p class="legend">{legend}</p></figure>'
    )


def thinned(curve: Curve, most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of equally many neighbours; the last step is kept."""
    size = -(-len(curve) // most)
    if size <= 1:
        return list(curve)
    out = []
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        whole = [y for _, y in part if math.isfinite(y)]
        out.append((part[-1][0], sum(whole) / len(whole) if whole else math.nan))
    return out


def ruler(low: float, high: float, count: int = 4) -> list[float]:
    """Axis ticks in steps of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    if high - low < 1e-12 + 1e-9 * abs(high):
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    out, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        out.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    if len(out) == 1:  # a dot: a line of length 0 with round ends
        out.append("h0")
    return "".join(out)


def _last(curve: Curve) -> str:
    return next((f"{y:.4g}" for _, y in reversed(curve) if math.isfinite(y)), "–")


def _anchor(place: int, count: int) -> str:
    return (
        "middle"
        if count == 1
        else ("start", "middle", "end")[0 if place == 0 else 2 if place == count - 1 else 1]
    )
