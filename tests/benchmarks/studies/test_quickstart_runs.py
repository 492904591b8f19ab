"""The study of repeated quickstarts: it goes on where it stopped, and refuses folders that are not its own."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.quickstart_runs import __main__ as command
from benchmarks.studies.quickstart_runs.one_run import checked_layout, parse_layout
from benchmarks.studies.quickstart_runs.records import FILE, RunRecord, StudyRecord, read_study
from benchmarks.studies.quickstart_runs.running import Asked, RunFailed, in_process, run_all
from medmo_core.errors import InputError
from medmo_recipes.commands.three_stages import Layout, recipe_digest


class Runs:
    """Runs that take no time, some of which fail.

    Args:
        make_run: what makes a record.
    """

    def __init__(self, make_run: Callable[..., RunRecord]) -> None:
        self.make_run = make_run
        self.started: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, asked: Asked, folder: Path) -> Mapping[str, Any]:
        assert list(folder.iterdir()) == [], "a run begins in an empty folder"
        self.started.append(asked.name)
        (folder / "left").write_text("over")
        if asked.name in self.failing:
            raise RunFailed(f"{asked.name} fell over")
        values = asdict(self.make_run(asked.seed, 0.4))
        return {name: value for name, value in values.items() if name not in ("seed", "layout", "isa")}


def test_a_stopped_study_goes_on_and_keeps_what_is_finished(make_run: Callable[..., RunRecord], tmp_path: Path) -> None:
    runs, out = Runs(make_run), tmp_path / "study"
    runs.failing = {"seed-0-1x2-machine"}
    with pytest.raises(RunFailed, match="fell over"):
        run_all(out, size="debug", seeds=[0, 1], start=runs)
    assert runs.started == ["seed-0-2x1-machine", "seed-1-2x1-machine", "seed-0-1x2-machine"]
    assert [run.name for run in read_study(out / FILE).runs] == ["seed-0-2x1-machine", "seed-1-2x1-machine"]

    runs.started, runs.failing = [], set()
    study = run_all(out, size="debug", seeds=[0, 1], start=runs)
    assert runs.started == ["seed-0-1x2-machine", "seed-1-1x2-machine"]
    order = [(0, "1x2"), (0, "2x1"), (1, "1x2"), (1, "2x1")]
    assert [(run.seed, run.layout) for run in study.runs] == order
    assert read_study(out / FILE) == study and study.recipe == recipe_digest("debug")

    runs.started = []
    assert len(run_all(out, size="debug", seeds=[0], layouts=["2x1"], isa="avx2", start=runs).runs) == 5
    assert runs.started == ["seed-0-2x1-avx2"], "other instructions are other runs"
    assert len(run_all(out, size="debug", seeds=[0, 1], start=runs).runs) == 5 and len(runs.started) == 1


def test_folders_of_others_are_refused_and_left_alone(make_run: Callable[..., RunRecord], tmp_path: Path) -> None:
    runs = Runs(make_run)
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("x")
    for name, recipe, size in (("tiny", recipe_digest("tiny"), "tiny"), ("old", "0123456789ab", "debug")):
        (tmp_path / name).mkdir()
        StudyRecord(size, recipe).write(tmp_path / name / FILE)
    for name, said in (
        ("file", "is a file, expected a folder"),
        ("foreign", "holds something, but no runs.json of a study; name a new or empty folder"),
        ("tiny", "holds runs of size tiny, asked for is debug; name another folder"),
        ("old", "holds runs of recipe 0123456789ab, asked for is"),
    ):
        with pytest.raises(InputError, match=said):
            run_all(tmp_path / name, size="debug", seeds=[0], start=runs)
    assert runs.started == [] and [p.name for p in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist: expected the file that `python -m benchmarks.studies.quickstart_runs --out DIR`"),
        ("{", "is not JSON"),
        ("[]", 'does not say "study": "quickstart_runs"'),
        ('{"stages": {}}', 'does not say "study": "quickstart_runs"'),
        ('{"study": "quickstart_runs", "size": "tiny", "recipe": "a"}', "has other fields .'runs'."),
        ('{"study": "quickstart_runs", "size": "tiny", "recipe": "a", "runs": [{"seed": 1}]}', "has other fields"),
    ],
)
def test_a_broken_study_is_refused_in_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=said):
        read_study(tmp_path / FILE)
    assert command.main(["--table", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / FILE}") and len(message.splitlines()) == 1
    if text is not None:
        assert command.main(["--out", str(tmp_path)]) == 2, "nothing is run"


def test_a_run_that_stands_twice_is_refused(make_run: Callable[..., RunRecord], tmp_path: Path) -> None:
    StudyRecord("tiny", "a", [make_run(0, 0.3), make_run(0, 0.4)]).write(tmp_path / FILE)
    with pytest.raises(InputError, match="holds a run twice: seed-0-2x1-machine"):
        read_study(tmp_path / FILE)


def test_layouts_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_layout("2x1") == Layout(2, 1) and parse_layout("1x16") == Layout(1, 16)
    assert checked_layout("1x2") == "1x2"
    for wrong in ("2", "2x", "0x1", "1x0", "2x1x1", "-1x2"):
        with pytest.raises(SystemExit):
            command.main(["--out", "never", f"--layouts={wrong}"])
        assert f"{wrong!r}: expected processes and threads of each, as 2x1" in capsys.readouterr().err
    assert not Path("never").exists()


def test_one_run_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The debug model, which says no box that could be read; one thread, since two would wait where others work."""
    found = run_all(tmp_path / "study", size="debug", seeds=[3], layouts=["1x1"])
    assert found == read_study(tmp_path / "study" / FILE)
    (run,) = found.runs
    assert isinstance(run, RunRecord) and run.name == "seed-3-1x1-machine"
    quickstart = tmp_path / "study" / run.name / "quickstart"
    metrics = json.loads((quickstart / "metrics.json").read_text())
    for stage in ("instruct", "reinforce"):
        assert run.stages[stage]["grounding_iou"] == metrics["stages"][stage]["grounding_iou"]
        assert {"vqa_accuracy", "grounding_denied", "grounding_invented", "report_fact_f1"} <= set(run.stages[stage])
    assert metrics["seed"] == 3 and run.verdicts == {v["claim"]: v["holds"] for v in metrics["verdicts"]}
    for metric, change in run.changes.items():
        before, after = (metrics["stages"][stage][metric]["value"] for stage in ("instruct", "reinforce"))
        assert change["difference"] == pytest.approx(after - before) and change["low"] is not None
    assert run.training_iou["n"] == 6 and run.training_iou["baseline"] > 0
    assert run.seconds == metrics["seconds"] and run.cpu_seconds == metrics["cpu_seconds"]
    assert run.wall_s > sum(run.seconds.values()) and run.cpu_s > sum(run.cpu_seconds.values()) > 0
    assert {"cpu", "cores", "instructions", "torch", "commit", "changed"} <= set(run.machine)

    again = Asked("debug", 3, "1x1", "machine")
    with pytest.raises(RunFailed, match="seed-3-1x1-machine ended with status 1; its own message stands above"):
        in_process(again, quickstart.parent)  # holds a quickstart already
