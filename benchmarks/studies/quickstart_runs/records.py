"""Records of the study: what is kept of every run, and the file that holds them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medmo_core.durable import write_json
from medmo_core.errors import InputError

NAME = "quickstart_runs"
FILE = "runs.json"
Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """Figures of one run of the quickstart.

    Attributes:
        seed: number that fixed weights, data and sampling.
        layout: processes and threads of each, as "2x1".
        isa: name of the restriction of the processor's instructions, see `ISAS`.
        stages: "instruct" and "reinforce" -> metric -> the score of held-out questions, as in metrics.json.
        training_iou: score in IoU of grounding questions about training images, after instruct.
        changes: metric -> its difference, reinforce less instruct, and the ends of the paired interval.
        verdicts: claim -> whether it holds.
        seconds: part -> wall clock.
        cpu_seconds: part -> CPU time of the run's process and its stages; not of the copies that answer questions.
        wall_s: seconds from start to end of the run's process.
        cpu_s: CPU seconds of that process and its stages; not of the copies that answer questions.
        machine: processor and software.
    """

    seed: int
    layout: str
    isa: str
    stages: Mapping[str, Figures]
    training_iou: Mapping[str, Any]
    changes: Figures
    verdicts: Mapping[str, bool]
    seconds: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    wall_s: float
    cpu_s: float
    machine: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return run_name(self.seed, self.layout, self.isa)


def run_name(seed: int, layout: str, isa: str) -> str:
    """Return the name of a run and of its folder."""
    return f"seed-{seed}-{layout}-{isa}"


@dataclass(frozen=True)
class StudyRecord:
    """Runs of the quickstart with one recipe.

    Attributes:
        size: which configs, "tiny" or "debug".
        recipe: digest of the recipe.
        runs: the finished runs, in the order of instructions, seeds and layouts.
    """

    size: str
    recipe: str
    runs: Sequence[RunRecord] = ()

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, {"study": NAME, **asdict(self)}, indent=1)


def read_study(path: Path) -> StudyRecord:
    """Read the file of a study.

    Raises:
        InputError: there is none, or it is not the file of this study; the message says what is wrong.
    """
    expected = "expected the file that `python -m benchmarks.studies.quickstart_runs --out DIR` writes"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {expected}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise InputError(f"{path} is not JSON ({error}): {expected}; remove its folder or name another") from error
    if not isinstance(values, dict) or values.get("study") != NAME:
        raise InputError(f'{path} does not say "study": "{NAME}": {expected}; name another folder')
    try:
        runs = [RunRecord(**run) for run in values["runs"]]
        study = StudyRecord(values["size"], values["recipe"], runs)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} has other fields ({error}): {expected}, with this version of the code") from error
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"{path} holds a run twice: {', '.join(sorted(n for n in set(names) if names.count(n) > 1))}")
    return study
