"""The ratios as a bar chart: SVG by hand, which needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.measure import Comparison

WIDTH, LABELS, BAR, GAP, HEAD = 760, 250, 22, 14, 46  # pixels
OURS, MISSED, AIM, INK = "#2f6f9f", "#b5483a", "#222222", "#333333"


def chart(comparisons: Sequence[Comparison]) -> str:
    """One bar a comparison, its length ours over the bound, with a mark where the aim is."""
    longest = max(1.0, *(c.ratio for c in comparisons))
    scale = (WIDTH - LABELS - 80) / longest
    height = HEAD + len(comparisons) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" fill="{INK}" font-size="15">Ours as a share of the bound (black mark: the aim)</text>',
    ]
    for number, comparison in enumerate(comparisons):
        parts += _bar(comparison, HEAD + number * (BAR + GAP), scale)
    return "\n".join([*parts, "</svg>", ""])


def _bar(comparison: Comparison, top: int, scale: float) -> list[str]:
    colour = MISSED if comparison.missed(quick=False) else OURS
    width = comparison.ratio * scale
    middle = top + BAR - 6
    parts = [
        f'<text x="{LABELS - 8}" y="{middle}" fill="{INK}" text-anchor="end">{escape(comparison.name)}</text>',
        f'<rect x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<text x="{LABELS + width + 8:.1f}" y="{middle}" fill="{INK}">{comparison.ratio:.2f}</text>',
    ]
    if comparison.aim is not None:
        at = LABELS + comparison.aim * scale
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3}" y2="{top + BAR + 3}" stroke="{AIM}" stroke-width="2"/>'
        )
    return parts
