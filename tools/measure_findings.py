"""Measure the findings reader against human codes, and write the table of docs/factuality.md.

    python -m tools.measure_findings --write          # measure and write the table
    python -m tools.measure_findings                  # exit status 1 where the page says something else
    python -m tools.measure_findings --read scar      # disagreements on the even ids, to be read in your own terminal

The reports are the 3,955 chest radiograph reports of Indiana University that the wheel of torchxrayvision carries
(CC BY-NC-ND 4.0): they are read where they are installed and never copied. Install the wheel alone, without what it
requires: `pip install --no-deps torchxrayvision==1.5.7`. It is not imported.
"""

import argparse
import importlib.metadata
import math
import re
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.report.page_section import settle
from medmo_core.findings import PRESENT, kinds_of, read_claims

PAGE = Path(__file__).resolve().parents[1] / "docs/factuality.md"
PACKAGE, ARCHIVE = "torchxrayvision", "NLMCXR_reports.tgz"
MIN_POSITIVES = 50
"""Findings with so many coded reports in the whole set are held to the bars."""
PRECISION_BAR, RECALL_BAR = 0.80, 0.90
NOT_CODED = "no indexing"
NO_FINDINGS = {"normal": "there is nothing to find", "technical quality of image unsatisfactory": "it judges the film"}
"""Headings that name no finding -> why."""

_BONES = ("ribs", "thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "spine", "clavicle", "humerus",
          "sternum", "scapula", "shoulder")  # fmt: skip
CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    # our name: what we read, and the codes that mean it; `heading/qualifier` asks for both, `*` is any heading
    "opacity": ("opacity", ("opacity", "density")),
    "opacity, worded as density": ("density", ("density",)),
    "airspace disease": ("airspace disease", ("airspace disease",)),
    "infiltrate": ("infiltrate", ("infiltrate",)),
    "consolidation": ("consolidation", ("consolidation",)),
    "pneumonia": ("pneumonia", ("pneumonia",)),
    "atelectasis": ("atelectasis", ("pulmonary atelectasis",)),
    "pulmonary edema": ("edema", ("pulmonary edema",)),
    "pulmonary congestion": ("pulmonary congestion", ("pulmonary congestion",)),
    "increased markings": ("increased markings", ("markings", "lung/interstitial")),
    "emphysema": ("emphysema", ("emphysema", "pulmonary emphysema", "bullous emphysema")),
    "COPD": ("copd", ("pulmonary disease, chronic obstructive",)),
    "hyperinflation": ("hyperinflation", ("lung/hyperdistention",)),
    "low lung volume": ("low lung volume", ("lung/hypoinflation",)),
    "scar": ("scar", ("cicatrix",)),
    "granuloma": ("granuloma", ("granuloma", "calcified granuloma", "granulomatous disease")),
    "calcified granuloma": ("calcified granuloma", ("calcified granuloma",)),
    "nodule": ("nodule", ("nodule", "opacity/round", "density/round")),
    "calcification": ("calcification", ("calcinosis",)),
    "pleural effusion": ("pleural effusion", ("pleural effusion",)),
    "pneumothorax": ("pneumothorax", ("pneumothorax", "hydropneumothorax")),
    "pleural thickening": ("pleural thickening", ("thickening/pleura",)),
    "blunted costophrenic angle": ("blunted costophrenic angle", ("costophrenic angle",)),
    "elevated diaphragm": ("elevated diaphragm", ("diaphragm/elevated",)),
    "flattened diaphragm": ("flattened diaphragm", ("diaphragm/flattened",)),
    "hiatal hernia": ("hiatal hernia", ("hernia, hiatal",)),
    "cardiomegaly": ("cardiomegaly", ("cardiomegaly", "cardiac shadow/enlarged", "cardiac shadow/borderline")),
    "tortuous aorta": ("tortuous aorta", ("aorta/tortuous", "aorta, thoracic/tortuous")),
    "atherosclerosis": (
        "atherosclerosis",
        ("atherosclerosis", "calcinosis/aorta", "calcinosis/aorta, thoracic", "calcinosis/coronary vessels"),
    ),
    "degenerative change": (
        "degenerative change",
        ("*/degenerative", "spondylosis", "osteophyte", "arthritis", "hyperostosis, diffuse idiopathic skeletal"),
    ),
    "osteophyte": ("osteophyte", ("osteophyte",)),
    "spondylosis": ("spondylosis", ("spondylosis",)),
    "scoliosis": ("scoliosis", ("scoliosis",)),
    "kyphosis": ("kyphosis", ("kyphosis",)),
    "fracture": ("fracture", ("fractures, bone",)),
    "bone deformity": ("deformity", tuple(f"deformity/{bone}" for bone in _BONES)),
    "catheter": ("catheter", ("catheters, indwelling",)),
    "implanted device": ("implanted device", ("implanted medical device",)),
    "surgical material": ("surgical material", ("surgical instruments", "sutures")),
}


WORDINGS = frozenset({"opacity, worded as density"})
"""Rows for information whatever their count: the same finding in other words."""


@dataclass(frozen=True)
class Report:
    """One report: its number, what it says of the image, and its codes, each a heading and qualifiers."""

    number: int
    text: str
    codes: tuple[tuple[str, ...], ...]

    def has(self, codes: Iterable[str]) -> bool:
        """Say whether a human gave it one of these codes."""
        for heading, _, qualifier in (code.partition("/") for code in codes):
            for own, *qualifiers in self.codes:
                if heading in ("*", own) and (not qualifier or qualifier in qualifiers):
                    return True
        return False


@dataclass(frozen=True)
class Counts:
    """Agreement on one finding."""

    both: int
    only_read: int
    only_coded: int

    @property
    def precision(self) -> tuple[float, float, float]:
        """Share of what was read that is coded, with its interval."""
        return wilson(self.both, self.both + self.only_read)

    @property
    def recall(self) -> tuple[float, float, float]:
        """Share of what is coded that was read, with its interval."""
        return wilson(self.both, self.both + self.only_coded)

    @property
    def holds(self) -> bool:
        """Whether both bars are met."""
        return self.precision[0] >= PRECISION_BAR and self.recall[0] >= RECALL_BAR


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float, float]:
    """Return a share and its 95 % interval after Wilson; nothing tried is nan."""
    if not trials:
        return math.nan, math.nan, math.nan
    share, square = hits / trials, z * z / trials
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return share, centre - half, centre + half


def archive() -> Path | None:
    """Return where the reports are installed; None where they are not."""
    try:
        files = importlib.metadata.files(PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == ARCHIVE), None)


def load_reports() -> list[Report]:
    """Return the reports that say something and were coded, by number.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    path = archive()
    if path is None:
        raise FileNotFoundError(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==1.5.7")
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            name = re.search(r"(\d+)\.xml$", member.name)
            file = tar.extractfile(member) if name else None
            if name is None or file is None:
                continue
            root = ElementTree.fromstring(file.read())
            parts = {part.get("Label"): (part.text or "").strip() for part in root.iter("AbstractText")}
            text = "\n".join(parts.get(label, "") for label in ("FINDINGS", "IMPRESSION")).strip()
            codes = tuple(
                tuple(word.strip().casefold() for word in (code.text or "").split("/")) for code in root.iter("major")
            )
            if text and codes and (NOT_CODED,) not in codes:
                found.append(Report(int(name[1]), text, codes))
    return sorted(found, key=lambda report: report.number)


def read_findings(report: Report) -> set[str]:
    """Return what a report says is there: the policy is that an uncertain mention does not count."""
    return {kind for claim in read_claims(report.text) if claim.status == PRESENT for kind in kinds_of(claim.finding)}


def measure(reports: Sequence[Report]) -> dict[str, Counts]:
    """Return the agreement of reader and codes, finding by finding."""
    read = [read_findings(report) for report in reports]
    counts = {}
    for name, (finding, codes) in CODES.items():
        pairs = [(finding in said, report.has(codes)) for said, report in zip(read, reports, strict=True)]
        counts[name] = Counts(pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)))
    return counts


def reports_per_second(reports: Sequence[Report]) -> float:
    """Return the reader's speed in CPU time of one core, the best of three passes."""
    read_claims(reports[0].text)
    passes = []
    for _ in range(3):
        start = time.process_time()
        for report in reports:
            read_claims(report.text)
        passes.append(time.process_time() - start)
    return len(reports) / min(passes)


def held_to_bars(reports: Sequence[Report]) -> list[str]:
    """Return the findings with enough coded reports in the whole set."""
    counts = {name: sum(report.has(codes) for report in reports) for name, (_, codes) in CODES.items()}
    return [name for name, count in counts.items() if count >= MIN_POSITIVES and name not in WORDINGS]


def headings(reports: Sequence[Report]) -> dict[str, tuple[int, str]]:
    """Return each heading of enough reports: how many bear it, and the rows that read it or why none does.

    Raises:
        LookupError: a heading that no row reads and nothing explains.
    """
    found = {}
    for heading in sorted({code[0] for report in reports for code in report.codes}):
        count = sum(report.has((heading,)) for report in reports)
        if count < MIN_POSITIVES:
            continue
        rows = [name for name, (_, codes) in CODES.items() if any(_reads(code, heading, reports) for code in codes)]
        if not rows and heading not in NO_FINDINGS:
            raise LookupError(f"no row of CODES reads the heading {heading!r} of {count} reports: add one, or say why")
        found[heading] = count, ", ".join(rows) if rows else f"no finding: {NO_FINDINGS[heading]}"
    return found


def _reads(code: str, heading: str, reports: Sequence[Report]) -> bool:
    """Say whether a code reads a heading, if only with a qualifier, in at least a tenth of the heading's reports."""
    own, _, qualifier = code.partition("/")
    if own not in ("*", heading):
        return False
    bearing = [report for report in reports if report.has((heading,))]
    wanted = f"{heading}/{qualifier}" if qualifier else heading
    return 10 * sum(report.has((wanted,)) for report in bearing) >= len(bearing)


def table(reports: Sequence[Report]) -> str:
    """Return the page's table."""
    even, odd = ([r for r in reports if r.number % 2 == parity] for parity in (0, 1))
    tuned, reported, held = measure(even), measure(odd), held_to_bars(reports)

    def row(name: str) -> str:
        coded = sum(r.has(CODES[name][1]) for r in reports)
        cells = [name, str(coded), str(reported[name].both + reported[name].only_coded)]
        cells += ["{:.2f} ({:.2f}-{:.2f})".format(*s) for s in (reported[name].precision, reported[name].recall)]
        cells += [f"{tuned[name].precision[0]:.2f} / {tuned[name].recall[0]:.2f}"]
        return "| " + " | ".join(cells) + " |"

    head = [
        "| finding | coded, all | coded, odd ids | precision, odd ids | recall, odd ids | P / R, even ids |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    met = sum(reported[name].holds for name in held)
    lines = [
        f"{len(reports):,} reports that say something and were coded: rules tuned on the {len(even):,} of even number, "
        f"figures of the {len(odd):,} of odd number, 95 % intervals after Wilson. Of the {len(held)} findings with "
        f"{MIN_POSITIVES} or more coded reports, {met} have precision >= {PRECISION_BAR:.2f} and recall >= "
        f"{RECALL_BAR:.2f} on the odd ids.",
        "",
        *head,
        *(row(name) for name in held),
        "",
        f"For information: findings with fewer than {MIN_POSITIVES} coded reports, and a wording of one above.",
        "",
        *head,
        *(row(name) for name in CODES if name not in held),
        "",
        f"Every heading that {MIN_POSITIVES} or more of these reports bear, and the rows above that read it:",
        "",
        "| heading | reports | read as |",
        "| --- | --- | --- |",
        *(f"| {heading} | {count} | {rows} |" for heading, (count, rows) in headings(reports).items()),
    ]
    return "\n".join(lines)


def show(name: str, reports: Sequence[Report], limit: int) -> None:
    """Print disagreements of the even ids."""
    finding, codes = CODES[name]
    for report in [r for r in reports if r.number % 2 == 0]:
        said, coded = finding in read_findings(report), report.has(codes)
        if said != coded and limit:
            limit -= 1
            print(f"{report.number}: {'read' if said else 'coded'} only; {report.codes}\n    {report.text!r}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    parser.add_argument("--read", choices=sorted(CODES), help="print disagreements on the even ids")
    parser.add_argument("--limit", type=int, default=20, help="of them")
    options = parser.parse_args(arguments)
    reports = load_reports()
    if options.read:
        show(options.read, reports, options.limit)
        return 0
    print(f"{reports_per_second(reports):,.0f} reports/s of CPU time on one core")
    fix = "python -m tools.measure_findings --write"
    return settle(PAGE, "tools.measure_findings", table(reports), write=options.write, fix=fix)


if __name__ == "__main__":
    sys.exit(main())
