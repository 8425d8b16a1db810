"""Small SVG charts, written by hand: nothing has to be installed for them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape

COLOURS = {
    "direct": "#666666",
    "haproxy": "#b5b5b5",
    "twemproxy": "#e3a857",
    "Envoy": "#b07aa1",
    "predixy": "#4e79a7",
    "rescind": "#c8372d",
    "rescind, 1,000 patterns": "#e0776f",
    "rescind, no rules": "#f2b8b3",
}
OTHERS = ("#4e79a7", "#59a14f", "#e3a857", "#b07aa1", "#76b7b2", "#666666")
FONT = 'font-family="system-ui, sans-serif"'


def colour(name: str, number: int) -> str:
    return COLOURS.get(name) or OTHERS[number % len(OTHERS)]


# --- bars ---------------------------------------------------------------------


@dataclass
class Group:
    """Bars that stand together: values by series, none where nothing was measured."""

    title: str
    values: dict[str, float | None]


BAR, GAP, TALL = 15, 26, 200


def bars(
    title: str, groups: list[Group], series: list[str], line: float | None = None, digits: int = 2, columns: int = 6
) -> str:
    """Groups of bars, each with its value, so many groups in a row. `line`: drawn across, and all groups have one
    scale; without it each group has a scale of its own."""
    left, top = 20, 92
    across, down = BAR * len(series) + GAP, TALL + 100
    rows = -(-len(groups) // columns)
    width = max(left * 2 + across * min(columns, len(groups)) - GAP, left + _legend_width(series))
    common = max((v for group in groups for v in _known(group)), default=1)
    parts = [_text(left, 22, title, size=15, weight="bold"), _legend(left, 44, series)]
    for number, group in enumerate(groups):
        row, column = divmod(number, columns)
        most = common if line is not None else max(_known(group), default=1)
        parts += _group(group, series, left + column * across, top + row * down, most, digits)
    if line is not None:
        for row in range(rows):
            y = top + row * down + TALL * (1 - line / max(common, line))
            parts.append(f'<line x1="{left - 6}" x2="{width - left + 6}" y1="{y:.1f}" y2="{y:.1f}" stroke="#000" '
                         'stroke-dasharray="3 3" stroke-opacity="0.6"/>')  # fmt: skip
    return _svg(width, top + rows * down - 40, parts)


def _group(group: Group, series: list[str], left: float, top: float, most: float, digits: int) -> list[str]:
    parts, foot = [], top + TALL
    for place, name in enumerate(series):
        value = group.values.get(name)
        if value is None:
            continue
        tall, at = TALL * value / (most or 1), left + place * BAR
        parts.append(
            f'<rect x="{at}" y="{foot - tall:.1f}" width="{BAR - 2}" height="{tall:.1f}" '
            f'fill="{colour(name, place)}"><title>{escape(name)}: {value:.{digits}f}</title></rect>'
        )
        parts.append(_text(at + 10, foot - tall - 4, f"{value:.{digits}f}", size=9, turn=-90))
    for row, word in enumerate(group.title.split(", ")):
        parts.append(_text(left + BAR * len(series) / 2, foot + 16 + 14 * row, word, anchor="middle"))
    return parts


def _known(group: Group) -> list[float]:
    return [value for value in group.values.values() if value is not None]


# --- lines --------------------------------------------------------------------


@dataclass
class Panel:
    """Lines over a common x. Both axes are logarithmic unless `log_y` says otherwise."""

    title: str
    x: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    log_y: bool = False


def lines(title: str, panels: list[Panel], columns: int = 3) -> str:
    """Panels with a common legend, so many in a row."""
    width, height, left, top, across, down = 330, 200, 56, 78, 414, 282
    series = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    parts = [_text(16, 22, title, size=15, weight="bold"), _legend(16, 44, series)]
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        parts += _panel(panel, series, left + column * across, top + row * down, width, height)
    legend = 16 + _legend_width(series)
    total = left + min(len(panels), columns) * across - 60
    rows = (len(panels) + columns - 1) // columns
    return _svg(max(total, legend), top + rows * down - 34, parts)


def _panel(panel: Panel, series: list[str], left: float, top: float, width: float, height: float) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    if not points:
        return []
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across = _log_scale(min(xs), max(xs), left, width)
    most = max(ys) * 1.08 or 1
    if panel.log_y:
        low = 10 ** math.floor(math.log10(max(min(ys), most / 1e6)))
        up = _log_scale(low, most, top + height, -height)
        marks = [low * 10**n for n in range(9) if low * 10**n <= most]
    else:
        step = _step(most / 4)
        marks = [step * n for n in range(int(most / step) + 1)]
        up = lambda y: top + height * (1 - y / most)  # noqa: E731
    parts = [_text(left, top - 8, panel.title, size=12)]
    for mark in marks:
        y = up(mark)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, short(mark), anchor="end", size=10))
    for x in _thinned(sorted(set(xs)), across):
        parts.append(_text(across(x), top + height + 16, short(x, panel.x), anchor="middle", size=10))
    parts.append(_text(left + width / 2, top + height + 34, panel.x, anchor="middle"))
    for name, line in panel.lines.items():
        tint = colour(name, series.index(name))
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{tint}" stroke-width="2"/>')
        for x, y in line:
            parts.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{tint}">'
                         f"<title>{escape(name)}: {short(x, panel.x)}, {y:.4g}</title></circle>")  # fmt: skip
    return parts


def _thinned(xs: list[float], across: Callable[[float], float]) -> Iterable[float]:
    """Those whose labels have room."""
    last = -math.inf
    for x in xs:
        if across(x) - last >= 34:
            last = across(x)
            yield x


def _log_scale(low: float, high: float, start: float, length: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1
    return lambda value: start + length * math.log(max(value, low) / low) / span


def _step(least: float) -> float:
    power = 10 ** math.floor(math.log10(least))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= least)


def short(value: float, unit: str = "") -> str:
    """1500000 as 1.5M, or 1.43Mi of bytes."""
    thousand, sign = (1024, "i") if unit == "bytes" else (1000, "")
    for size, letter in ((thousand**2, "M"), (thousand, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}{sign}"
    return f"{value:.3g}"


# --- parts --------------------------------------------------------------------


def _legend(x: float, y: float, series: list[str]) -> str:
    parts = []
    for number, name in enumerate(series):
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour(name, number)}"/>')
        parts.append(_text(x + 14, y, name))
        x += _label_width(name)
    return "".join(parts)


def _legend_width(series: list[str]) -> float:
    return sum(_label_width(name) for name in series)


def _label_width(name: str) -> float:
    return 32 + 6.3 * len(name)


def _text(
    x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", weight: str = "normal", turn: int = 0
) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
        f"{turned}>{escape(text)}</text>"
    )


def _svg(width: float, height: float, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" {FONT} fill="#222">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
