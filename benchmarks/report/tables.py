"""Tables of a result as Markdown: per subject every way beside ours, what was lost, and the targets."""

from collections.abc import Container, Mapping, Sequence
from itertools import groupby

from ..suite.comparison import OURS
from ..suite.schema import Result, Row
from .markdown import table
from .ratios import Contest, Ratio, ceiling_share
from .targets import Judgement

RED = "🔴"
"""Marks a loss: GitHub keeps no colours of text."""

NO_FIGURE = "ours has no figure"


def duration(us: float) -> str:
    """Write microseconds in the unit that reads best."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:#.3g} {unit}".replace(". ", " ")
    return f"{us:#.3g} us".replace(". ", " ")


def marked(found: Ratio, name: str = "") -> str:
    """Write a ratio, in bold and with the red mark where ours is slower."""
    text = f"{found} {name}".rstrip()
    return f"{RED} **{text}**" if found.standing == "slower" else text


def subjects(result: Result, contests: Sequence[Contest]) -> list[str]:
    """Return headings and tables of every level and subject."""
    parts: list[str] = []
    for level, of_level in groupby(contests, key=lambda contest: contest.place[0]):
        parts.append(f"### {level.title()}")
        for subject, grouped in groupby(of_level, key=lambda contest: contest.place[1]):
            found = list(grouped)
            nowhere = absent_everywhere(found)
            parts += [f"#### {subject}", _subject_table(found, result.ceilings, nowhere)]
            if nowhere:
                parts.append("Absent: " + "; ".join(f"{way} ({reason})" for way, reason in nowhere.items()) + ".")
    return parts


def absent_everywhere(found: Sequence[Contest]) -> dict[str, str]:
    """Return the ways that are absent from all of these for one reason, which then need not stand in every line."""
    rows = [row for contest in found for row in contest.rows]
    reasons_of = {way: {row.reason if row.status == "absent" else "" for row in rows if row.way == way}
            for way in dict.fromkeys(row.way for row in rows)}  # fmt: skip
    return {way: next(iter(reasons)) for way, reasons in reasons_of.items() if len(reasons) == 1 and reasons != {""}}


def _subject_table(found: Sequence[Contest], ceilings: Mapping[str, float], left_out: Container[str]) -> str:
    units = dict.fromkeys(row.unit for contest in found for row in contest.rows if row.items)
    head = ["case", "dtype", "direction", "way", "median", "20 to 80 %", "runs", "ratio to ours, other over ours",
            "GB/s", "TFLOP/s", "of ceiling", *(f"{unit}/s" for unit in units), "peak MB",
            "error / allowed, against"]  # fmt: skip
    rows = []
    for contest in found:
        _, _, case, dtype, direction = contest.place
        for number, row in enumerate(row for row in _ours_first(contest) if row.way not in left_out):
            place = ["", "", ""] if number else [case, dtype, direction]
            way = f"**{row.way}**" if row.way == OURS else row.way
            rows.append([*place, way, *_figures(row, contest, ceilings, tuple(units))])
    return table(head, rows)


def _ours_first(contest: Contest) -> list[Row]:
    return sorted(contest.rows, key=lambda row: (row.way != OURS, row.role != "reference", row.status != "timed"))


def _figures(row: Row, contest: Contest, ceilings: Mapping[str, float], units: Sequence[str]) -> list[str]:
    if row.status != "timed":
        mark = f"{RED} **WRONG**: " if row.status == "wrong" else "absent: "
        return [mark + row.reason, *[""] * (8 + len(units))]
    seconds = 1e-6 * row.median_us
    share = ceiling_share(row, ceilings)
    per_second = [_short(row.items / seconds) if row.items and row.unit == unit else "" for unit in units]
    checked = row.checked
    return [
        duration(row.median_us),
        f"{duration(row.p20_us)} to {duration(row.p80_us)}",
        str(len(row.samples_us)),
        _ratio_cell(row, contest),
        _short(row.bytes / seconds / 1e9) if row.bytes else "",
        _short(row.flops / seconds / 1e12) if row.flops else "",
        "" if share is None else f"{share:.0%}",
        *per_second,
        f"{row.peak_bytes / 1e6:.1f}" if row.peak_bytes else "",
        f"{checked.error:.2g} / {checked.bound:.2g}, {checked.against}" if checked else "",
    ]


def _ratio_cell(row: Row, contest: Contest) -> str:
    if row.way == OURS:
        best = contest.headline
        return marked(best[1], f"to {best[0].way}") if best else "no peer here"
    if row.way not in contest.ratios:
        return NO_FIGURE
    return f"{contest.ratios[row.way]}" if row.role == "ours" else marked(contest.ratios[row.way])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def standings(contests: Sequence[Contest]) -> dict[str, list[tuple[Contest, Row, Ratio]]]:
    """Sort the comparisons that have a peer by where ours stands beside the best one: slower, level or faster."""
    found: dict[str, list[tuple[Contest, Row, Ratio]]] = {"slower": [], "level": [], "faster": []}
    for contest in contests:
        if contest.headline:
            found[contest.headline[1].standing].append((contest, *contest.headline))
    return found


def summary(contests: Sequence[Contest]) -> list[str]:
    """Count where ours stands beside the best peer, and list what was lost, worst first, to the plain reference too."""
    standing = standings(contests)
    behind_reference: list[tuple[Contest, Row, Ratio]] = []
    for contest in contests:
        for row in contest.rows:
            found = contest.ratios.get(row.way)
            if row.role == "reference" and found and found.standing == "slower":
                behind_reference.append((contest, row, found))
    counts = {name: len(found) for name, found in standing.items()}
    parts = [
        f"{len(contests)} comparisons (a case in one direction), {sum(counts.values())} of them with a peer that has a "
        f"figure. Against the best peer ours is faster in {counts['faster']}, level in {counts['level']} (the interval "
        f"holds 1) and slower in {counts['slower']}."
    ]
    if standing["slower"]:
        parts += ["Where a peer is faster, worst first:", _standings(standing["slower"])]
    if behind_reference:
        parts += ["Where the plain reference is faster:", _standings(behind_reference)]
    if standing["level"]:
        parts += ["Level:", _standings(standing["level"])]
    return parts


def _standings(found: Sequence[tuple[Contest, Row, Ratio]]) -> str:
    rows = []
    for contest, best, value in sorted(found, key=lambda item: item[2].value):
        level, subject, case, _, direction = contest.place
        ours = duration(contest.ours.median_us) if contest.ours else ""
        rows.append([level, subject, case, direction, ours, best.way, duration(best.median_us), marked(value)])
    return table(["level", "subject", "case", "direction", "ours", "other", "its median", "ratio"], rows)


def targets_table(found: Sequence[tuple[Judgement, str]], *, brief: bool = False) -> str:
    """Return the table of targets, each with the device on which it was looked up.

    Args:
        found: targets with their figures, and the device's name.
        brief: only what is asked, measured and concluded.
    """
    rows = []
    for one, device in found:
        target = one.target
        bound = "at most " if target.measure == "us" else "at least "
        stretch = target.shown(target.stretch) if target.stretch else ""
        where = one.contest.name if one.contest else _plain(f"{target.subject}, {target.case}, {target.direction}")
        if one.measured and one.meant > 1:
            where += f" (least favourable of {one.measured} with a figure, {one.meant} meant)"
        verdict = f"{RED} **{one.verdict}**" if one.verdict == "missed" else one.verdict
        row = [where, one.other or _plain(target.against), bound + target.shown(target.must), one.text, verdict]
        rows.append(row if brief else [*row, one.prediction, stretch, device or target.kind, target.source])
    head = ["what", "against", "asked for", "measured", "verdict"]
    return table(head if brief else [*head, "prediction", "stretch", "device", "from"], rows)


def _plain(pattern: str) -> str:
    """Write a pattern without asterisks, which Markdown takes for itself."""
    return "any" if pattern == "*" else pattern.replace("*", "…")
