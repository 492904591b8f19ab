"""Publication of the study: its file, the page, the summary for the quickstart's report, and the median run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from medmo_core.durable import write_json, write_text
from medmo_core.errors import InputError
from medmo_core.notice import PAGE_NOTICE
from medmo_recipes.pages.study_summary import SUMMARY

from ...report.page_section import markers, settle
from .one_run import QUICKSTART
from .page import section
from .records import FILE, StudyRecord, read_study
from .spread import median_run, refuse_gaps, summary_json

ROOT = Path(__file__).resolve().parents[3]
TOOL = "benchmarks.studies.quickstart_runs"
FIGURES = ROOT / "benchmarks/results/cpu/quickstart_runs"
"""Folder of the committed study."""


@dataclass(frozen=True)
class Places:
    """Files that the study is published in.

    Attributes:
        figures: folder that gets the study's file.
        page: page of the tables; what stands outside their markers is kept.
        summary: what the quickstart's report reads.
        metrics: metrics.json of the median run.
        pictures: held-out pictures of the median run.
    """

    figures: Path
    page: Path
    summary: Path
    metrics: Path
    pictures: Path


PLACES = Places(
    figures=FIGURES,
    page=ROOT / "docs/quickstart_runs.md",
    summary=SUMMARY,
    metrics=ROOT / "benchmarks/results/cpu/quickstart.json",
    pictures=ROOT / "docs/quickstart.png",
)
HEAD = f"""# Runs of the quickstart

Written by `python -m {TOOL} --table DIR`, which keeps what stands outside the markers. {PAGE_NOTICE}

So small a model is chaotic: other rounding alone lets it end elsewhere. Every seed is run as two processes of one
thread (2x1) and as one process of two threads (1x2). Questions are held out, under fixed random crops, but for the
column of training images. Brackets: 95 % intervals over slices; they speak of these few scans only. Denied: share of
questions about something that is there, answered with nothing. Invented: share of questions about something that is
not there, answered with boxes. Differences are paired by question; "within noise" is one whose interval holds 0.
CPU time is that of training and of the process that evaluates, not of the copies that answer its questions.
"""


def publish(folder: Path, places: Places) -> list[Path]:
    """Write all that is committed of a study; from the committed one alone, all but the files of the median run.

    Args:
        folder: folder of the study.
        places: files to write.

    Returns:
        The files written.

    Raises:
        InputError: the folder holds no study, an unfinished one, runs of the debug size, which say nothing, or not the
            files of the median run.
    """
    study = read_study(folder / FILE)
    if study.size != "tiny":
        raise InputError(f"{folder / FILE} holds runs of size {study.size}; only those of size tiny are published")
    refuse_gaps(study)
    copied = median_files(folder, study, places)
    text, summary = section(study), summary_json(study)  # before anything is written: a record may lack a figure
    places.figures.mkdir(parents=True, exist_ok=True)
    study.write(places.figures / FILE)
    write_json(places.summary, summary, indent=1)
    if not places.page.exists():
        begin, end = markers(TOOL)
        write_text(places.page, f"{HEAD}\n{begin}\n{end}\n")
    settle(places.page, TOOL, text, write=True, fix=f"python -m {TOOL} --table")
    for source, target in copied.items():
        shutil.copyfile(source, target)
    return [places.figures / FILE, places.summary, places.page, *copied.values()]


def median_files(folder: Path, study: StudyRecord, places: Places) -> dict[Path, Path]:
    """Return file of the median run -> file that becomes its copy.

    Returns:
        None for the committed study, which has no folders, and where its median run still is the median of all.

    Raises:
        InputError: the median run's files are gone, so that README would show another run.
    """
    if folder.resolve() == places.figures.resolve():
        return {}
    middle, committed = median_run(study.runs), places.figures / FILE
    run = folder / middle.name / QUICKSTART
    if not run.exists() and committed.is_file() and median_run(read_study(committed).runs) == middle:
        return {}
    copied = {run / "metrics.json": places.metrics, run / "held_out.png": places.pictures}
    for source in copied:
        if not source.exists():
            raise InputError(f"{source} of the median run does not exist; bring the folders of the runs back")
    return copied
