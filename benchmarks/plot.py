"""How far each target is reached, as a bar chart: SVG by hand, which needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.measure import Check, Comparison

WIDTH, LABELS, VALUES, BAR, GAP, HEAD = 980, 430, 150, 20, 10, 46  # pixels
LONGEST = 2.0  # times the target: a bar that would be longer ends there, and its figure says so
MET, MISSED, MARK, INK = "#2f6f9f", "#b5483a", "#222222", "#333333"


def chart(results: Sequence[Comparison | Check]) -> str:
    """One bar for each result that has a target: its end at the mark is the target, beyond it is better."""
    aimed = [result for result in results if isinstance(result, Check) or result.aim is not None]
    height = HEAD + len(aimed) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" fill="{INK}" font-size="15">How far each target is reached '
        "(black mark: the target; further right is better)</text>",
    ]
    for number, result in enumerate(aimed):
        parts += _bar(result, HEAD + number * (BAR + GAP))
    return "\n".join([*parts, "</svg>", ""])


def reached(result: Comparison | Check) -> float:
    """1 on the target, more when it is better than that."""
    if isinstance(result, Comparison):
        return result.ratio / (result.aim or 1)
    return result.target / result.value if result.at_most else result.value / result.target


def _figure(result: Comparison | Check) -> str:
    if isinstance(result, Comparison):
        return f"{result.ratio:.2f} × (≥ {result.aim:g})"
    return f"{result.value:.3g} {result.unit} ({'≤' if result.at_most else '≥'} {result.target:g})"


def _bar(result: Comparison | Check, top: int) -> list[str]:
    scale = (WIDTH - LABELS - VALUES) / LONGEST
    width = min(reached(result), LONGEST) * scale
    middle, mark = top + BAR - 5, LABELS + scale
    colour = MISSED if result.missed(quick=False) else MET
    return [
        f'<text x="{LABELS - 8}" y="{middle}" fill="{INK}" text-anchor="end">{escape(result.name)}</text>',
        f'<rect x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<text x="{max(LABELS + width, mark) + 8:.1f}" y="{middle}" fill="{INK}">{escape(_figure(result))}</text>',
        f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="{top - 3}" y2="{top + BAR + 3}" stroke="{MARK}" stroke-width="2"/>',
    ]
