"""The plots of a report. Each takes what was recorded and answers a `Plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sim.core import recording as rec
from sim.core.clock import SECOND_NS
from sim.core.episodes import Episode
from sim.core.recording import Recording, Series, Update
from sim.core.simulation import Result
from sim.report import words
from sim.report.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Plot,
    delay_axis,
    figure,
    size_axis,
    styled,
    svg_of,
    time_axis,
)

ROWS_MAX: Final = 40
"""Of the timeline: more cannot be read."""
LINES_MAX: Final = 60
"""Updates drawn one by one."""
BARS_MAX: Final = 40
"""Sites that have a bar each; more are drawn as a curve."""
CHANGES_MAX: Final = 250
"""Steps of a line that can be told from one another; of more, least, most and average are drawn."""
SPANS: Final = 160
"""Parts of the run for that."""
RANKS_MAX: Final = 400
"""Points of that curve."""
LABEL_MAX: Final = 38
PARTS: Final = 1000
"""Bars of a row that are closer than one of so many parts of the span are drawn as one."""
START_NS: Final = 3 * SECOND_NS
"""Nodes meet and VPCs are made in this time."""

_KINDS: Final = {"cut": RED, "one-way cut": ORANGE, "flap": PURPLE, "down": BLUE, "slow": SKY}
_OTHERS: Final = (GREEN, INK, GREY, SKY, PURPLE, ORANGE)
_HATCHES: Final = ("", "////", "....")
_MARKERS: Final = ("o", "^", "v", "X", "P", "s", "*")
_GROUPS: Final = dict(zip(rec.GROUPS, (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY), strict=True))


def timeline(recording: Recording, result: Result) -> Plot:
    """What was wrong, a row for each cut and each node, and how much at once."""
    episodes = recording.episodes.logged
    rows: dict[tuple[bool, str], list[Episode]] = {}
    for episode in episodes:
        rows.setdefault((_of_a_node(episode), episode.what), []).append(episode)
    end_ns = recording.ended_ns
    shown = _longest_rows(rows, end_ns)
    looks = _looks(episodes, end_ns)
    unit = words.Unit.for_span(end_ns)
    with styled():
        body_in = 0.26 * max(len(shown), 1)
        fig = figure(2.1 + body_in)
        heights = [1.0, body_in + 0.15]
        count_axes, axes = fig.subplots(2, 1, sharex=True, height_ratios=heights)
        _count_under_way(count_axes, episodes, unit, end_ns)
        for y, key in enumerate(shown):
            _draw_row(axes, y, rows[key], looks, unit, end_ns)
        axes.set_yticks(
            range(len(shown)), [words.shortened(what, LABEL_MAX) for _, what in shown], fontsize=9
        )
        axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        handles = [look.handle(kind) for kind, look in looks.items()]
        if result.violations:
            for violation in result.violations:
                for part in (count_axes, axes):
                    part.axvline(
                        unit.of(round(violation.at_s * SECOND_NS)), color=INK, ls=":", lw=1.4
                    )
            handles.append(Line2D([], [], color=INK, ls=":", label="violation"))
        if handles:
            fig.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 6))
        time_axis(axes, unit, end_ns)
        alt = (
            f"Timeline of {words.count(len(episodes), 'fault')} over"
            f" {words.duration(end_ns / SECOND_NS)}: "
            + "; ".join(f"{kind} × {n}" for kind, n in _numbers(episodes).items())
        )
        return Plot(svg_of(fig, "timeline", alt), alt, _rows_left_out(rows, shown, recording))


@dataclass(frozen=True, slots=True)
class _Look:
    """How a kind of episode is drawn: a bar, or a marker where it takes no time."""

    colour: str
    hatch: str = ""
    marker: str = ""

    def handle(self, kind: str) -> Patch | Line2D:
        if self.marker:
            return Line2D([], [], ls="", marker=self.marker, ms=7, color=self.colour, label=kind)
        return Patch(facecolor=self.colour, hatch=self.hatch, edgecolor="white", label=kind)


def _looks(episodes: Sequence[Episode], end_ns: int) -> dict[str, _Look]:
    """By kind. Well-known ones look the same on every page, the others are told apart."""
    looks: dict[str, _Look] = {}
    bars = markers = 0
    kinds = _numbers(episodes)
    free = [colour for colour in _OTHERS if colour not in [_KINDS.get(kind) for kind in kinds]]
    for kind in kinds:
        if not any(_length_ns(e, end_ns) for e in episodes if e.kind == kind):
            looks[kind] = _Look(INK, marker=_MARKERS[markers % len(_MARKERS)])
            markers += 1
        elif kind in _KINDS:
            looks[kind] = _Look(_KINDS[kind])
        else:
            again, which = divmod(bars, len(free))
            looks[kind] = _Look(free[which], _HATCHES[again % len(_HATCHES)])
            bars += 1
    return looks


def _of_a_node(episode: Episode) -> bool:
    """Whether it befell one node: a cut names two sides."""
    return not {"|", "→"} & set(episode.what)


def _numbers(episodes: Sequence[Episode]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for episode in episodes:
        numbers[episode.kind] = numbers.get(episode.kind, 0) + 1
    return numbers


def _length_ns(episode: Episode, end_ns: int) -> int:
    return (end_ns if episode.ended_ns is None else episode.ended_ns) - episode.began_ns


def _longest_rows(
    rows: dict[tuple[bool, str], list[Episode]], end_ns: int
) -> list[tuple[bool, str]]:
    """The rows with most that was wrong; nodes after the cuts, each by when it first was."""
    kept = sorted(rows, key=lambda key: -sum(_length_ns(e, end_ns) for e in rows[key]))[:ROWS_MAX]
    return sorted(kept, key=lambda key: (key[0], rows[key][0].began_ns, key[1]))


def _rows_left_out(
    rows: dict[tuple[bool, str], list[Episode]],
    shown: Sequence[tuple[bool, str]],
    recording: Recording,
) -> str:
    parts = []
    if hidden := len(rows) - len(shown):
        parts.append(
            f"{words.count(hidden, 'row')} with less time are not drawn below, but counted above."
        )
    if recording.episodes.left_out:
        parts.append(f"{words.count(recording.episodes.left_out, 'later fault')} were not logged.")
    return " ".join(parts)


def _count_under_way(
    axes: Axes, episodes: Sequence[Episode], unit: words.Unit, end_ns: int
) -> None:
    changes: dict[int, int] = {0: 0, end_ns: 0}
    for episode in episodes:
        ended_ns = episode.began_ns + _length_ns(episode, end_ns)
        changes[episode.began_ns] = changes.get(episode.began_ns, 0) + 1
        changes[ended_ns] = changes.get(ended_ns, 0) - 1
    times = sorted(changes)
    under_way = list(accumulate(changes[time] for time in times))
    axes.fill_between([unit.of(time) for time in times], under_way, step="post", color=FAINT, lw=0)
    axes.step([unit.of(time) for time in times], under_way, where="post", color=GREY, lw=1)
    axes.set_ylim(0, max([*under_way, 1]) * 1.15)
    axes.set_ylabel("under way")
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _draw_row(
    axes: Axes,
    y: int,
    episodes: Sequence[Episode],
    looks: dict[str, _Look],
    unit: words.Unit,
    end_ns: int,
) -> None:
    height = 0.68
    for kind in dict.fromkeys(episode.kind for episode in episodes):
        of_kind = [episode for episode in episodes if episode.kind == kind]
        look = looks[kind]
        ends = [unit.of(e.began_ns + _length_ns(e, end_ns)) for e in of_kind]
        if look.marker:
            style: dict[str, Any] = {
                "marker": look.marker,
                "ms": 7,
                "mfc": look.colour,
                "mec": "white",
            }
            axes.plot(ends, [y] * len(ends), ls="", **style)
            continue
        bars: list[tuple[int, int]] = []
        for episode in of_kind:
            length_ns = _length_ns(episode, end_ns)
            if bars and episode.began_ns - sum(bars[-1]) < end_ns // PARTS:
                until_ns = max(sum(bars[-1]), episode.began_ns + length_ns)
                bars[-1] = (bars[-1][0], until_ns - bars[-1][0])
            else:
                bars.append((episode.began_ns, length_ns))
        spans = [(unit.of(start), unit.of(length)) for start, length in bars]
        edge = "white" if look.hatch else look.colour
        across = (y - height / 2, height)
        axes.broken_barh(spans, across, fc=look.colour, ec=edge, hatch=look.hatch or None, lw=1.2)
        height = max(height - 0.24, 0.2)  # what is drawn over another lets it be seen
        noted = [at for at, episode in zip(ends, of_kind, strict=True) if episode.note]
        axes.plot(noted, [y] * len(noted), ls="", marker="D", ms=6, mfc="white", mec=INK)


def shade(axes: Axes, recording: Recording, unit: words.Unit) -> None:
    """Grey where anything was wrong."""
    spans: list[list[int]] = []
    for episode in recording.episodes.logged:
        until_ns = episode.began_ns + _length_ns(episode, recording.ended_ns)
        gap_ns = recording.ended_ns // PARTS
        if spans and episode.began_ns <= spans[-1][1] + gap_ns:
            spans[-1][1] = max(spans[-1][1], until_ns)
        else:
            spans.append([episode.began_ns, until_ns])
    for began_ns, ended_ns in spans:
        axes.axvspan(unit.of(began_ns), unit.of(ended_ns), color="#eef0f3", lw=0)


def _steps(
    axes: Axes, series: Series, column: int, unit: words.Unit, end_ns: int, **style: Any
) -> None:
    """One of a series' numbers; the last row holds to the end of the run."""
    numbers = [row[column] for row in series.rows]
    axes.step(
        [unit.of(at_ns) for at_ns in (*series.at_ns, end_ns)],
        [*numbers, numbers[-1]],
        where="post",
        **style,
    )


def spans_of(
    series: Series, column: int, end_ns: int, count: int
) -> list[tuple[int, int, int, float]]:
    """(from when, the least, the most, the average by time) of one of a series' numbers in each of
    so many equal parts of the run, for those from its first row on."""
    rows = list(zip(series.at_ns, [row[column] for row in series.rows], strict=True))
    found = []
    now, next_row = rows[0][1], 1
    for part in range(rows[0][0] * count // end_ns, count):
        from_ns, until_ns = part * end_ns // count, (part + 1) * end_ns // count
        if next_row < len(rows) and rows[next_row][0] == from_ns:
            now, next_row = rows[next_row][1], next_row + 1
        least = most = now
        total, at_ns = 0, from_ns
        while next_row < len(rows) and rows[next_row][0] < until_ns:
            total += now * (rows[next_row][0] - at_ns)
            at_ns, now = rows[next_row]
            least, most = min(least, now), max(most, now)
            next_row += 1
        total += now * (until_ns - at_ns)
        found.append((from_ns, least, most, total / (until_ns - from_ns)))
    return found


def _band(axes: Axes, series: Series, column: int, unit: words.Unit, end_ns: int) -> None:
    """What would be a line too dense to be read, as its average between its least and most."""
    spans = spans_of(series, column, end_ns, SPANS)
    spans.append((end_ns, *spans[-1][1:]))
    times = [unit.of(at_ns) for at_ns, *_ in spans]
    least, most = [row[1] for row in spans], [row[2] for row in spans]
    label = f"least and most of each {words.duration(end_ns / SPANS / SECOND_NS)}"
    axes.fill_between(times, least, most, step="post", color=SKY, alpha=0.4, lw=0, label=label)
    axes.step(times, [row[3] for row in spans], where="post", color=BLUE, label="in agreement")


def agreement(recording: Recording) -> Plot:
    """How many nodes run, and how many of them hold the same."""
    series = recording.agreement.series
    unit = words.Unit.for_span(recording.ended_ns)
    with styled():
        fig = figure(3.0)
        axes = fig.subplots()
        shade(axes, recording, unit)
        _steps(
            axes, series, 0, unit, recording.ended_ns, color=GREY, ls="--", lw=1.4, label="running"
        )
        if len(series.rows) > CHANGES_MAX:
            _band(axes, series, 1, unit, recording.ended_ns)
        else:
            _steps(axes, series, 1, unit, recording.ended_ns, color=BLUE, label="in agreement")
        axes.set_ylim(0, max(row[0] for row in series.rows) * 1.06 + 0.02)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("nodes")
        time_axis(axes, unit, recording.ended_ns)
        handles, _ = axes.get_legend_handles_labels()
        handles.append(Patch(color="#e3e6ea", label="something is wrong"))
        fig.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        running, agreeing = series.rows[-1]
        fewest = min(row[1] for row in series.rows)
        alt = (
            f"Nodes in agreement over time: at the fewest {fewest}, at the end {agreeing} of"
            f" {running} that run."
        )
        return Plot(svg_of(fig, "agreement", alt), alt)


def last_bin(delays: Sequence[int]) -> int:
    """The last bin with anything in it; 0 without one."""
    return max((i for i, number in enumerate(delays) if number), default=0)


def convergence(recording: Recording, result: Result) -> Plot:
    """The share of nodes that have an update, by the time since it was made."""
    travels = recording.travels
    arrivals = [a + b for a, b in zip(travels.calm, travels.rough, strict=True)]
    longest = max(last_bin(arrivals), 8)
    updates = _drawn(list(travels.followed.values()))
    with styled():
        fig = figure(4.2)
        axes = fig.subplots()
        high_s = rec.bin_end_s(longest) * 1.3
        for update in updates:
            style = {"color": ORANGE if update.rough else SKY, "lw": 0.7, "alpha": 0.55}
            _share(axes, [1, *update.delays], travels.holders(update), high_s, style)
        _share(
            axes, [travels.made, *arrivals], travels.expected(), high_s, {"color": INK, "lw": 2.4}
        )
        _mark(axes, "p50", result.push_p50_s, "right")
        _mark(axes, "p99", result.push_p99_s, "left")
        first = next((i for i, number in enumerate(arrivals) if number), 0)
        delay_axis(axes, max(0.001, rec.bin_end_s(first) / 4), high_s)
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f} %")
        axes.set_ylabel("nodes that have it")
        axes.set_xlabel("time since the update was made")
        handles = [
            Line2D([], [], color=INK, lw=2.4, label="average of all updates"),
            Line2D([], [], color=SKY, lw=1.6, label="an update"),
            Line2D([], [], color=ORANGE, lw=1.6, label="an update, faults on its way"),
        ]
        fig.legend(handles=handles, loc="outside upper right", ncols=3)
        alt = (
            f"Share of nodes that have an update over the time since it was made, of"
            f" {words.count(travels.made, 'update')}. Undisturbed, half of the arrivals take at"
            f" most {words.duration(result.push_p50_s)}, 99 % at most"
            f" {words.duration(result.push_p99_s)}; the longest of all took"
            f" {words.duration(rec.bin_end_s(last_bin(arrivals)))}."
        )
        left_out = ""
        if len(updates) < travels.made:
            left_out = (
                f"Of {words.count(travels.made, 'update')} the lines of {len(updates)} are drawn,"
                " the slowest among them; the average is over all."
            )
        return Plot(svg_of(fig, "convergence", alt), alt, left_out)


def _share(
    axes: Axes, counts: Sequence[int], whole: int, high_s: float, style: dict[str, object]
) -> None:
    """A step curve: `counts[0]` at once, `counts[1 + i]` in bin i."""
    xs, ys = [0.001], [counts[0] / whole]
    total = counts[0]
    for i, number in enumerate(counts[1:]):
        if number:
            total += number
            xs.append(rec.bin_end_s(i))
            ys.append(total / whole)
    xs.append(high_s)
    ys.append(total / whole)
    axes.step(xs, ys, where="post", **style)


def _drawn(updates: list[Update]) -> list[Update]:
    """The slowest few, and the others evenly over the run; the undisturbed are drawn last."""
    slow = sorted(range(len(updates)), key=lambda i: -last_bin(updates[i].delays))
    step = max(1, -(-len(updates) * 4 // (LINES_MAX * 3)))
    chosen = sorted({*range(0, len(updates), step), *slow[: LINES_MAX // 4]})
    return sorted((updates[i] for i in chosen), key=lambda update: not update.rough)


def _mark(axes: Axes, name: str, at_s: float | None, side: str) -> None:
    """A line at a delay, with its name above the plot."""
    if at_s is None:
        return
    axes.axvline(max(at_s, 0.001), color=GREEN, ls="--", lw=1.4)
    axes.text(
        max(at_s, 0.001),
        1.02,
        f"{name} {words.duration(at_s)}",
        transform=axes.get_xaxis_transform(),
        ha=side,
        color="#00664c",
        fontweight="bold",
    )


def bytes_over_time(recording: Recording) -> Plot:
    """Bytes a second that all nodes sent together."""
    traffic = recording.traffic
    unit = words.Unit.for_span(recording.ended_ns)
    slots = min(recording.ended_ns // traffic.slot_ns + 1, len(traffic.by_slot[0]))
    per_second = SECOND_NS / traffic.slot_ns
    times = [unit.of(i * traffic.slot_ns) for i in range(slots)]
    used = [i for i, series in enumerate(traffic.by_slot) if any(series)]
    rates = [[value * per_second for value in traffic.by_slot[i][:slots]] for i in used]
    with styled():
        fig = figure(2.8)
        axes = fig.subplots()
        shade(axes, recording, unit)
        if used:
            colours = [_GROUPS[rec.GROUPS[i]] for i in used]
            axes.stackplot(times, rates, colors=colours, step="post", lw=0)
        totals = [sum(column) for column in zip(*rates, strict=True)]
        top, left_out = _without_the_start(totals, traffic.slot_ns)
        axes.set_ylim(0, top)
        axes.set_ylabel("all nodes, per second")
        size_axis(axes.yaxis)
        time_axis(axes, unit, recording.ended_ns)
        handles = [Patch(color=_GROUPS[rec.GROUPS[i]], label=rec.GROUPS[i]) for i in used]
        if handles:
            fig.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        peak = max(totals, default=0.0)
        alt = f"Bytes sent per second by all nodes together over time; at most {words.size(peak)}."
        return Plot(svg_of(fig, "traffic", alt), alt, left_out)


def _without_the_start(totals: Sequence[float], slot_ns: int) -> tuple[float, str]:
    """(top of the axis, what is beyond it): a mesh that comes up would dwarf all that follows."""
    start = min(START_NS // slot_ns + 1, len(totals))
    at_start, later = max(totals[:start], default=0.0), max(totals[start:], default=0.0)
    if 0 < later * 2 < at_start:
        said = f"The start of the mesh goes beyond the plot, up to {words.size(at_start)} a second."
        return later * 1.15, said
    return max(at_start, later, 1.0) * 1.08, ""


def site_bytes(recording: Recording) -> dict[str, list[int]]:
    """site -> bytes that its gateways sent, by group of frames."""
    sites: dict[str, list[int]] = {}
    for node, site in enumerate(recording.sites):
        mine = sites.setdefault(site, [0] * len(rec.GROUPS))
        for i, series in enumerate(recording.traffic.by_node):
            mine[i] += series[node]
    return sites


def bytes_per_site(recording: Recording) -> Plot:
    """A bar for each site; of many sites a curve over their ranks."""
    sites = site_bytes(recording)
    used = [i for i in range(len(rec.GROUPS)) if any(mine[i] for mine in sites.values())]
    totals = [sum(mine) for mine in sites.values()]
    alt = (
        f"Bytes sent by each of {words.count(len(sites), 'site')}: from {words.size(min(totals))}"
        f" to {words.size(max(totals))}."
    )
    few = len(sites) <= BARS_MAX
    with styled():
        fig = figure(0.9 + 0.27 * len(sites) if few else 3.0)
        axes = fig.subplots()
        if few:
            _bars(axes, sites, used)
        else:
            _ranks(axes, sites, used)
        handles = [Patch(color=_GROUPS[rec.GROUPS[i]], label=rec.GROUPS[i]) for i in used]
        if handles:
            fig.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        left_out = "" if few else "Sites are not named: they stand in the order of what they sent."
        return Plot(svg_of(fig, "bytes", alt), alt, left_out)


def _bars(axes: Axes, sites: dict[str, list[int]], used: Sequence[int]) -> None:
    left = [0] * len(sites)
    for i in used:
        mine = [of_site[i] for of_site in sites.values()]
        axes.barh(range(len(sites)), mine, left=left, height=0.7, color=_GROUPS[rec.GROUPS[i]])
        left = [a + b for a, b in zip(left, mine, strict=True)]
    names = [words.shortened(name, LABEL_MAX) for name in sites]
    axes.set_yticks(range(len(sites)), names)
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("sent in the whole run")
    size_axis(axes.xaxis)


def _ranks(axes: Axes, sites: dict[str, list[int]], used: Sequence[int]) -> None:
    ordered = sorted(sites.values(), key=lambda mine: -sum(mine))
    step = max(1, -(-len(ordered) // RANKS_MAX))
    places = sorted({*range(0, len(ordered), step), len(ordered) - 1})
    series = [[ordered[place][i] for place in places] for i in used]
    if used:
        colours = [_GROUPS[rec.GROUPS[i]] for i in used]
        axes.stackplot([place + 1 for place in places], series, colors=colours, lw=0)
    axes.set_xlim(1, len(ordered))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sites, by what they sent in the whole run")
    size_axis(axes.yaxis)


def conflicts(recording: Recording) -> Plot:
    """Conflicts that people would see listed, and how many came up and went."""
    series = recording.conflicts.series
    unit = words.Unit.for_span(recording.ended_ns)
    with styled():
        fig = figure(2.8)
        axes = fig.subplots()
        shade(axes, recording, unit)
        _steps(
            axes, series, 1, unit, recording.ended_ns, color=ORANGE, ls="-", label="opened so far"
        )
        _steps(
            axes, series, 2, unit, recording.ended_ns, color=GREEN, ls="--", label="resolved so far"
        )
        _steps(axes, series, 0, unit, recording.ended_ns, color=BLUE, lw=2.2, label="open")
        axes.set_ylim(0, max([row[1] for row in series.rows] + [1]) * 1.1)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("conflicts")
        time_axis(axes, unit, recording.ended_ns)
        fig.legend(loc="outside upper right", ncols=3)
        now_open, opened, resolved = series.rows[-1]
        most = max(row[0] for row in series.rows)
        alt = (
            f"Conflicts over time: {opened} opened, {resolved} resolved, at most {most} open at"
            f" once, {now_open} open at the end."
        )
        observers = len(recording.conflicts.observers)
        left_out = ""
        if observers < len(recording.names):
            left_out = f"Read at {observers} of the nodes."
        return Plot(svg_of(fig, "conflicts", alt), alt, left_out)
