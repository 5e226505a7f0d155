"""Figures in the style of the report, and their SVG as part of an HTML page.

The same figure gives the same bytes: no dates, ids from a fixed salt, one font that comes with
matplotlib. Nothing in the SVG refers to anything outside of it, and text stays text, so that it can
be searched, copied and read aloud.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sim.report import words

WIDTH_IN: Final = 10.6
INK: Final = "#1f2933"
FAINT: Final = "#d8dde3"
GREY: Final = "#6b7280"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
"""Okabe and Ito's palette (2008): told apart with every kind of colour vision."""

_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "weft",
    "svg.id": None,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}
_DELAYS: Final = {
    0.001: "1 ms",
    0.01: "10 ms",
    0.1: "100 ms",
    1.0: "1 s",
    10.0: "10 s",
    words.MINUTE_S: "1 min",
    10 * words.MINUTE_S: "10 min",
    words.HOUR_S: "1 h",
    6 * words.HOUR_S: "6 h",
    words.DAY_S: "1 day",
    7 * words.DAY_S: "1 week",
    30 * words.DAY_S: "30 days",
    365 * words.DAY_S: "1 year",
}
_FONTS: Final = "'DejaVu Sans', Verdana, 'Segoe UI', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn figure: `alt` says in words what it shows, `left_out` what it does not."""

    svg: str
    alt: str
    left_out: str = ""


@contextmanager
def styled() -> Iterator[None]:
    """Everything of a figure, from its making to its SVG, happens in here."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def figure(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def time_axis(axes: Axes, unit: words.Unit, end_ns: int) -> None:
    axes.set_xlim(0, max(unit.of(end_ns), 1e-9))
    axes.set_xlabel(f"virtual time ({unit.name})")


def size_axis(axis: Any) -> None:
    """Ticks of a matplotlib axis as bytes."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.size(value)))


def delay_axis(axes: Axes, low_s: float, high_s: float) -> None:
    """A logarithmic x axis of delays."""
    axes.set_xscale("log")
    axes.set_xlim(low_s, high_s)
    shown = {at_s: name for at_s, name in _DELAYS.items() if low_s <= at_s <= high_s}
    axes.set_xticks(list(shown), list(shown.values()))
    axes.set_xticks([], minor=True)


def svg_of(fig: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element; `name` keeps its ids apart from those of others."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", _FONTS)
    text = text.replace('xlink:href="#', f'href="#{name}-')
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib writes one"
    head = f'<svg {view[0]} role="img" aria-label="{html.escape(alt)}">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text).strip()
