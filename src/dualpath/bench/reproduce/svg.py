"""A plot as SVG text; colours are classes that the page styles for light and dark."""

from html import escape

from dualpath.bench.reproduce.axis import Axis, category_axis, linear_axis, log_axis, tick_text
from dualpath.bench.reproduce.plot import Curve, Plot, Point

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 46
_SHAPES = {  # by colour, so that nothing hangs on colour alone
    "basic": "M-4,-4h8v8h-8z", "dualpath": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z", "oracle": "M0,-5l5,9h-10z",
    "fourth": "M0,-5.5l5.5,5.5l-5.5,5.5l-5.5,-5.5z", "fifth": "M0,5l5,-9h-10z", "sixth": "M-5,-2h10v4h-10z",
    "seventh": "M-2,-5h4v10h-4z",
}  # fmt: skip


def svg(plot: Plot) -> str:
    """The plot; without points it says so."""
    shown = [_visible(curve, plot) for curve in plot.curves]
    points = [point for curve in shown for point in curve.points]
    body = _drawing(plot, shown, points) if points else _text(WIDTH / 2, HEIGHT / 2, "no points", "middle")
    title = _text(_LEFT, 18, plot.title, "start", "title")
    label = escape(f"{plot.title}: {plot.y_label} by {plot.x_label}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{title}{body}</svg>'


def _visible(curve: Curve, plot: Plot) -> Curve:
    if plot.y_most is None:
        return curve
    kept = [point for point in curve.points if point[1] <= plot.y_most]
    return Curve(curve.name, kept, curve.colour, curve.dashed, curve.paper, curve.marked)


def _drawing(plot: Plot, curves: list[Curve], points: list[Point]) -> str:
    x, y = _axes(plot, points)
    parts = [_grid(plot, x, y)]
    for bound in plot.bounds:
        at = y.place(bound.y)
        parts.append(f'<line class="bound" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(x.end - 2, at - 4, bound.name, "end", "small"))
    if plot.categories:
        parts.append(_bars(plot, curves, x, y))
    else:
        parts += [_line(curve, plot, x, y) for curve in curves if curve.points]
    return "".join(parts)


def _axes(plot: Plot, points: list[Point]) -> tuple[Axis, Axis]:
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    xs, ys = [x for x, _ in points], [y for _, y in points] + [bound.y for bound in plot.bounds]
    if plot.categories:
        x = category_axis(len(plot.categories), left, right)
    elif plot.log_x:
        x = log_axis(xs, left, right)
    else:
        x = linear_axis(xs, left, right)
    return x, linear_axis([*ys, 1.05 * max(ys)], bottom, top, plot.y_from)


def _grid(plot: Plot, x: Axis, y: Axis) -> str:
    parts = []
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(x.start - 6, at + 4, tick_text(tick), "end"))
    crowded = len(plot.categories) > 4
    for number, tick in enumerate(x.ticks):
        name = plot.categories[int(tick)] if plot.categories else tick_text(tick)
        parts.append(_text(x.place(tick), y.start + 14 + 11 * (crowded and number % 2), name, "middle"))
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    parts.append(_text((x.start + x.end) / 2, HEIGHT - 8, plot.x_label, "middle", "label"))
    middle = (y.start + y.end) / 2
    turned = f'<text class="label" text-anchor="middle" transform="translate(14 {middle:.1f}) rotate(-90)">'
    parts.append(f"{turned}{escape(plot.y_label)}</text>")
    return "".join(parts)


def _line(curve: Curve, plot: Plot, x: Axis, y: Axis) -> str:
    places = [(x.place(a), y.place(b)) for a, b in curve.points]
    path = "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dash = " dashed" if curve.dashed else ""
    line = "" if curve.paper else f'<path class="line {curve.colour}{dash}" d="{path}"/>'
    if not curve.marked:
        return line
    return line + "".join(
        _mark(curve, place, point, plot) for place, point in zip(places, curve.points, strict=True)
    )  # fmt: skip


def _mark(curve: Curve, place: tuple[float, float], point: Point, plot: Plot) -> str:
    hollow = ("hollow onbar" if plot.categories else "hollow") if curve.paper else "mark"
    where = plot.categories[int(point[0])] if plot.categories else f"{plot.x_label} {tick_text(point[0])}"
    who = f"paper: {curve.name}" if curve.paper else curve.name
    return (
        f'<path class="{hollow} {curve.colour}" transform="translate({place[0]:.1f} {place[1]:.1f})" '
        f'd="{_SHAPES[curve.colour]}"><title>{escape(f"{who}, {where}: {point[1]:.5g}")}</title></path>'
    )


def _bars(plot: Plot, curves: list[Curve], x: Axis, y: Axis) -> str:
    ours = [curve for curve in curves if not curve.paper]
    names = [curve.name for curve in ours]
    slot = 0.8 * (x.end - x.start) / len(plot.categories) / max(1, len(ours))
    marked = len(ours) < len(curves)  # marks would cover the bars' values
    parts = []
    for curve in sorted(curves, key=lambda c: c.paper):
        number = names.index(curve.name) if curve.name in names else (len(ours) - 1) / 2
        for point in curve.points:
            middle = x.place(point[0]) + (number - (len(ours) - 1) / 2) * slot
            if curve.paper:
                parts.append(_mark(curve, (middle, y.place(point[1])), point, plot))
            else:
                parts.append(_bar(curve, middle, slot, point, plot, y, marked))
    return "".join(parts)


def _bar(curve: Curve, middle: float, slot: float, point: Point, plot: Plot, y: Axis, marked: bool) -> str:
    top = y.place(point[1])
    hint = escape(f"{curve.name}, {plot.categories[int(point[0])]}: {point[1]:.5g}")
    width = max(2.0, min(slot - 2, 44))
    label = (
        _text(middle, top - 3, tick_text(float(f"{point[1]:.3g}")), "middle", "small")
        if slot >= 24 and not marked
        else ""
    )
    return (
        f'<rect class="bar {curve.colour}" x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{max(0.0, y.start - top):.1f}"><title>{hint}</title></rect>{label}'
    )


def legend(curves: list[Curve]) -> str:
    """Names with their marks, as HTML."""
    seen = list(dict.fromkeys((c.name, c.colour, c.dashed, c.paper) for c in curves))
    return "".join(
        f'<span><svg viewBox="-12 -7 24 14" class="key">{_key(colour, dashed, paper)}</svg>'
        f"{escape(f'paper: {name}' if paper and name != 'paper' else name)}</span>"
        for name, colour, dashed, paper in seen
    )


def _key(colour: str, dashed: bool, paper: bool) -> str:
    mark = f'<path class="{"hollow" if paper else "mark"} {colour}" d="{_SHAPES[colour]}"/>'
    return mark if paper else f'<path class="line {colour}{" dashed" if dashed else ""}" d="M-12,0h24"/>{mark}'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
