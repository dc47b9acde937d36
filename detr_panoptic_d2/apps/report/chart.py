"""Curves as inline SVG, in the colours of the page around them."""

import html
import math

Points = list[tuple[float, float]]

# Of the drawing, in its own units; about pixels on a phone.
_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 28
# More points than can be told apart are averaged.
_MAX_POINTS = 240
# From this ratio of the largest to the smallest value on the scale is logarithmic.
_LOG_RATIO = 12


def line_chart(title: str, series: dict[str, Points], *, least: float | None = None) -> str:
    """Draw curves over the iterations.

    The scale is logarithmic where values are positive and differ by an order of magnitude. What
    is not finite leaves a gap.

    Args:
        title: heading.
        series: (iteration, value) of each curve, by name; empty ones are left out.
        least: where the scale starts if it is linear. Default: the smallest value.

    Returns:
        str: a ``<figure>``; "" if there is nothing to draw.
    """
    thin = {name: _averaged(points) for name, points in series.items()}
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in thin.items()}
    thin = {name: thin[name] for name, points in finite.items() if points}
    if not thin:
        return ""
    values = [y for name in thin for _, y in finite[name]]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > _LOG_RATIO and least is None
    if not logarithmic:
        low = low if least is None else min(low, least)
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    end = max(x for name in thin for x, _ in finite[name])
    scale = math.log10 if logarithmic else float
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x / end if end else 0.5)
        up = (scale(y) - bottom) / span
        return across, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid_line(place(0, y)[1], _number(y)) for y in ticks]
    parts += [
        _below(place(x, low)[0], _number(x), x)
        for x in (_ticks(0, end, 4) if end else [0.0])
        if x <= end
    ]
    for number, points in enumerate(thin.values()):
        parts.append(_curve([place(*p) if math.isfinite(p[1]) else None for p in points], number))
    last = ", ".join(f"{name} {_number(finite[name][-1][1])}" for name in thin)
    label = html.escape(f"{title} over {_number(end)} iterations; last: {last}")
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true"><path class="c{i}" '
        f'd="M1 4H21"/></svg>{html.escape(name)} <b>{_number(finite[name][-1][1])}</b></li>'
        for i, name in enumerate(thin)
    )
    note = ' <span class="quiet">(logarithmic)</span>' if logarithmic else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}{note}</figcaption>'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"{''.join(parts)}</svg><ul>{legend}</ul></figure>"
    )


def _averaged(points: Points) -> Points:
    """Average neighbours until there are at most ``_MAX_POINTS``; the last one stays as it is."""
    size = math.ceil(len(points) / _MAX_POINTS)
    if size < 2:
        return points
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [tuple(sum(axis) / len(group) for axis in zip(*group, strict=True)) for group in groups]
    return [*means, points[-1]]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``count`` of them."""
    if high <= low:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten and, where these are few, their double and fivefold."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [f * 10.0**p for p in powers for f in factors]
    below = max((t for t in ticks if t <= low * 1.0001), default=ticks[0])
    above = min((t for t in ticks if t >= high * 0.9999), default=ticks[-1])
    return [t for t in ticks if below <= t <= above]


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _grid_line(y: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _below(x: float, text: str, value: float) -> str:
    anchor = "end" if x > _WIDTH - 40 else "middle" if value else "start"
    return f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{text}</text>'


def _curve(points: list[tuple[float, float] | None], number: int) -> str:
    path, pen_down = [], False
    for point in points:
        if point is not None:
            path.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    drawn = f'<path class="c{number}" d="{"".join(path)}"/>'
    if sum(point is not None for point in points) == 1:
        x, y = next(point for point in points if point is not None)
        drawn += f'<circle class="c{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    return drawn
