"""A run as one HTML page that needs nothing but itself: no network, script, font or style file.

What comes from outside (paths, scenario text, details of violations) is escaped where it is put in.
The page says what it leaves out. The same scenario, seed and path give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from sim.core import recording as rec
from sim.core.clock import SECOND_NS
from sim.core.recording import Recording, Update
from sim.core.scenario import Scenario
from sim.core.simulation import Result
from sim.report import plots, words
from sim.report.drawing import Plot

SOURCE_CHARS_MAX: Final = 100_000
SITES_NAMED_MAX: Final = 30
SLOWEST_MAX: Final = 10
FAULT_ROWS_MAX: Final = 200

_CSS: Final = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: #fff;
  color: #1f2933; font: 16px/1.5 system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #d8dde3;
  padding-top: 1rem; }
p { margin: .4rem 0 .8rem; max-width: 50rem; }
a { color: #00558a; }
nav a { margin-right: 1rem; }
.verdict { display: inline-block; padding: .3rem .8rem; border-radius: .3rem; font-weight: 600;
  background: #dff3ea; color: #00523d; }
.verdict.bad { background: #fde4d3; color: #7a2f00; }
.figures { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; list-style: none; padding: 0;
  margin: .6rem 0 .8rem; }
.figures li { max-width: 10.5rem; color: #52606d; font-size: .92rem; line-height: 1.3; }
.figures b { display: block; color: #1f2933; font-size: 1.15rem; font-weight: 600;
  white-space: nowrap; }
figure { margin: .5rem 0 1rem; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 44rem; height: auto; }
figcaption, .note { color: #52606d; font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; margin: .4rem 0 1rem; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid #e5e8ec;
  vertical-align: top; }
th { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font: .9rem/1.45 ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
pre { background: #f5f7f9; border: 1px solid #e5e8ec; padding: .7rem .9rem; overflow-x: auto; }
td code { overflow-wrap: anywhere; }
summary { cursor: pointer; color: #00558a; }
@media print { figure svg { min-width: 0; } nav { display: none; } }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, as `render` takes it."""

    file: str
    """the scenario's path, as given"""
    source: str
    """what is in the file"""
    replay: str
    """the command that runs it again"""
    scenario: Scenario
    result: Result
    recording: Recording
    interrupted: bool = False
    """before its end: what is shown is until then"""


def render(run: Run) -> str:
    """The page."""
    sections = [
        ("run", "What ran", _what_ran(run)),
        ("timeline", "What went wrong, and when", _timeline(run)),
        ("agreement", "Who agrees", _agreement(run)),
        ("convergence", "How updates travel", _convergence(run)),
        ("bytes", "Bytes", _bytes(run)),
        ("conflicts", "Conflicts", _conflicts(run)),
        ("violations", "Violations", _violations(run)),
        ("result", "Result", _result(run)),
    ]
    title = f"{run.file}, seed {run.result.seed}"
    links = "".join(f'<a href="#{id}">{heading}</a>' for id, heading, _ in sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>weft sim: {escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
        f"<header><h1>{escape(title)}</h1>{_verdict(run)}"
        f"{_in_short(run)}<nav>{links}</nav></header>",
        "<main>",
    ]
    for id, heading, body in sections:
        parts.append(f'<section id="{id}">\n<h2>{heading}</h2>\n{body}\n</section>')
    parts.append("</main>\n</body>\n</html>\n")
    return "\n".join(parts)


# ---- pieces ----


def _figure(plot: Plot, caption: str) -> str:
    words_below = " ".join(part for part in (caption, plot.left_out) if part)
    return f"<figure>\n{plot.svg}\n<figcaption>{escape(words_below)}</figcaption>\n</figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = "") -> str:
    """`numbers` has an n for every column of numbers, and another letter for the others."""
    classes = [' class="n"' if kind == "n" else "" for kind in numbers.ljust(len(head), "-")]
    top = "".join(
        f'<th{cls} scope="col">{escape(name)}</th>' for cls, name in zip(classes, head, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{cls}>{escape(str(cell))}</td>" for cls, cell in zip(classes, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>"
    )


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; the values are HTML already."""
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{value}</td></tr>\n' for name, value in rows
    )
    return f'<div class="scroll"><table>\n<tbody>\n{body}</tbody>\n</table></div>'


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def _verdict(run: Run) -> str:
    result = run.result
    if run.interrupted:
        found = words.count(len(result.violations), "violation")
        return (
            '<p><span class="verdict bad">Interrupted after'
            f" {words.duration(run.recording.ended_ns / SECOND_NS)} of virtual time: all that is"
            f" shown is until then; {found}.</span></p>"
        )
    if result.ok:
        words_said = "Everything held: all nodes agreed at the end, and no check failed."
        return f'<p><span class="verdict">{words_said}</span></p>'
    found = words.count(len(result.violations), "violation")
    ending = "" if result.converged else "; the nodes did not come to rest in time"
    return (
        f'<p><span class="verdict bad">{found}{ending}.</span>'
        ' <a href="#violations">See which</a></p>'
    )


def _in_short(run: Run) -> str:
    """The figures that people look for first."""
    result = run.result
    now_open, opened, _ = (run.recording.conflicts.series.rows or [(0, 0, 0)])[-1]
    p50, p99 = words.duration(result.push_p50_s), words.duration(result.push_p99_s)
    figures = [
        (words.duration(result.heal_s), "at most, after a heal, until all agreed"),
        (f"{p50}, {p99}", "from a write to another node, p50 and p99, nothing in its way"),
        (words.size(result.bytes_per_site), "sent by a site on average"),
        (f"{opened:,}", f"{'conflict' if opened == 1 else 'conflicts'}, {now_open:,} open"),
        (f"{result.lost:,}, {result.resurrected:,}", "writes lost, deletes come back"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b> {escape(of)}</li>" for value, of in figures)
    return f'<ul class="figures">{items}</ul>'


def _at(time_ns: int) -> str:
    return f"{time_ns / SECOND_NS:,.3f}".rstrip("0").rstrip(".")


# ---- sections ----


def _what_ran(run: Run) -> str:
    scenario, result = run.scenario, run.result
    sites = scenario.sites
    names = ", ".join(site.name for site in sites[:SITES_NAMED_MAX])
    if len(sites) > SITES_NAMED_MAX:
        names += f", … and {len(sites) - SITES_NAMED_MAX:,} more"
    nodes = len(scenario.node_names)
    ended_s = run.recording.ended_ns / SECOND_NS
    facts = [
        ("Scenario", f"<code>{escape(run.file)}</code>"),
        ("Seed", str(result.seed)),
        ("Replay", f"<code>{escape(run.replay)}</code>"),
        ("Sites", f"{words.count(len(sites), 'site')}, {words.count(nodes, 'gateway')}:"
                  f" {escape(names)}"),
        ("Virtual time", f"faults and writes for"
                         f" {words.duration(scenario.duration_ns / SECOND_NS)}; over after"
                         f" {words.duration(ended_s)} ({ended_s:,.3f} s)"),
        ("Network", f"{words.duration(scenario.latency_ns / SECOND_NS)} one way between sites"
                    f" where nothing else is said, {scenario.weather.loss * 100:g} % loss"),
        ("Writes", f"{words.count(result.writes, 'write')} taken, {result.refused:,} refused;"
                   f" {words.count(run.recording.travels.made, 'update')} sent"),
        ("Faults", f"{result.faults:,}"),
        ("Frames", f"{result.frames:,} sent, {result.frames_lost:,} of them lost"),
    ]  # fmt: skip
    if leapt_ns := run.recording.clock.leapt_ns:
        said = (
            f"{words.duration(leapt_ns / SECOND_NS)} in which nothing was under way and linked"
            " nodes held the same; what they told each other then is counted, not played"
        )
        facts.insert(5, ("Leapt over", said))
    source = run.source[:SOURCE_CHARS_MAX]
    if len(run.source) > SOURCE_CHARS_MAX:
        source += f"\n… {len(run.source) - SOURCE_CHARS_MAX:,} more characters are left out"
    return _facts(facts) + _details("The scenario file", f"<pre>{escape(source)}</pre>")


def _timeline(run: Run) -> str:
    episodes = run.recording.episodes.logged
    if not episodes:
        return "<p>Nothing went wrong in this run: there was no cut and no crash.</p>"
    caption = (
        "Above: how many faults were under way. Below: a row for each cut (its sides parted by |)"
        " and each node. A diamond stands where there is a note in the table."
    )
    plot = _figure(plots.timeline(run.recording, run.result), caption)
    end_ns = run.recording.ended_ns
    rows = [
        (
            _at(episode.began_ns),
            "–" if episode.ended_ns is None else _at(episode.ended_ns),
            words.duration(((episode.ended_ns or end_ns) - episode.began_ns) / SECOND_NS),
            episode.kind,
            episode.what,
            episode.note,
        )
        for episode in episodes[:FAULT_ROWS_MAX]
    ]
    head = ("from (s)", "to (s)", "for", "what", "where", "note")
    summary = f"All {words.count(len(episodes), 'fault')}"
    if len(episodes) > FAULT_ROWS_MAX:
        summary = f"The first {FAULT_ROWS_MAX} of {words.count(len(episodes), 'fault')}"
    return plot + _details(summary, _table(head, rows, "nnn"))


def _agreement(run: Run) -> str:
    heal = run.result.heal_s
    said = (
        "From a moment when nothing was wrong any more until every node had what any node had at"
        f" that moment it took {words.duration(heal)} at the longest."
        if heal is not None
        else "No heal was watched to its end in this run."
    )
    caption = (
        "A node agrees when it holds what most nodes hold of every shard that it keeps (equal"
        " digests). While users write, some update is always on its way, and the line dips."
    )
    return f"<p>{said}</p>" + _figure(plots.agreement(run.recording), caption)


def _convergence(run: Run) -> str:
    travels = run.recording.travels
    if not travels.made:
        return "<p>Nothing was written in this run.</p>"
    caption = (
        "p50 and p99 are over all arrivals at nodes that nothing separated from the writer"
        " meanwhile. A line that ends below 100 % is an update that some node never got as such:"
        " it was overwritten first, or lost with a disk."
    )
    plot = _figure(plots.convergence(run.recording, run.result), caption)
    slowest = sorted(
        travels.followed.values(), key=lambda u: (-plots.last_bin(u.delays), u.made_ns)
    )
    rows = [_update_row(run.recording, update) for update in slowest[:SLOWEST_MAX]]
    head = (
        "made at (s)",
        "by",
        "VPC or mesh",
        "at half of the nodes",
        "at all it reached",
        "reached",
    )
    note = "" if travels.stride == 1 else f" (one of {travels.stride} updates is followed)"
    return (
        plot
        + f"<p>The {len(rows)} slowest updates{note}, times to {_resolution_percent()} %:</p>"
        + _table(head, rows, "n--nnn")
    )


def _resolution_percent() -> int:
    return round((float(2 ** (1 / rec.BINS_PER_OCTAVE)) - 1) * 100)


def _update_row(recording: Recording, update: Update) -> tuple[object, ...]:
    holders = recording.travels.holders(update)
    reached = sum(update.delays)
    half_s: float | None = None
    passed = 1
    for i, number in enumerate(update.delays):
        passed += number
        if number and passed * 2 >= holders:
            half_s = rec.bin_end_s(i)
            break
    last_s = rec.bin_end_s(plots.last_bin(update.delays)) if reached else None
    return (
        _at(update.made_ns),
        recording.names[update.writer],
        recording.vpcs.get(update.shard, update.shard[:8]),
        words.duration(half_s),
        words.duration(last_s),
        f"{1 + reached} of {holders}",
    )


def _bytes(run: Run) -> str:
    recording = run.recording
    sites = plots.site_bytes(recording)
    totals = sorted(sum(mine) for mine in sites.values())
    facts = [
        ("Median site", words.size(totals[len(totals) // 2])),
        ("Busiest site", words.size(totals[-1])),
        ("All together", words.size(sum(totals))),
    ]
    rows = [
        (group, words.size(sum(series)), f"{frames:,}" if frames else "")
        for group, series, frames in zip(
            rec.GROUPS, recording.traffic.by_node, recording.traffic.frames, strict=True
        )
        if any(series)
    ]
    return (
        _figure(plots.bytes_per_site(recording), "Bytes that the gateways of each site sent.")
        + _figure(plots.bytes_over_time(recording), "Grey: something is wrong.")
        + _facts(facts)
        + _table(("frames for", "bytes", "frames"), rows, "-nn")
        + '<p class="note">Updates: new writes, pushed and passed on, and short answers. Comparing:'
        " digests and heads of anti-entropy. Catching up: long answers after a gap, a cut or a"
        " restart. Roster: who is a member. Links: making them, and heartbeats.</p>"
    )


def _conflicts(run: Run) -> str:
    rows = run.recording.conflicts.series.rows
    if rows[-1][1] == 0:
        return "<p>No conflict came up.</p>"
    now_open, opened, resolved = rows[-1]
    said = (
        f"<p>{words.count(opened, 'conflict')} opened, {resolved:,} resolved, {now_open:,} open at"
        " the end. The sides of a cut learn of conflicts between them when it heals.</p>"
    )
    caption = "As weft conflicts ls lists them at any of the nodes asked. Grey: something is wrong."
    return said + _figure(plots.conflicts(run.recording), caption)


def _violations(run: Run) -> str:
    found = run.result.violations
    if not found and run.interrupted:
        return "<p>None until the run was interrupted; at rest nothing was checked.</p>"
    if not found:
        return "<p>None: every check held, at every step and at rest.</p>"
    rows = [(f"{v.at_s:,.3f}", v.check, v.detail) for v in found]
    return f"<p>To see them again:</p>\n<pre>{escape(run.replay)}</pre>\n" + _table(
        ("at (s)", "what must hold", "what was found"), rows, "n--"
    )


def _result(run: Run) -> str:
    text = json.dumps(run.result.json(), indent=2, ensure_ascii=False)
    return (
        "<p>What <code>weft sim run -o json</code> prints:</p>"
        f'\n<pre id="result-json">{escape(text)}</pre>'
    )
