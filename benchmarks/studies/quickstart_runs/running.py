"""Runs of the study one after another, each in a separate process; what is finished is not run again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from medmo_core.errors import InputError, UserError
from medmo_recipes.commands.three_stages import cpu_seconds, recipe_digest

from . import one_run
from .records import FILE, RunRecord, StudyRecord, read_study, run_name

ROOT = Path(__file__).resolve().parents[3]
ISAS: Mapping[str, Mapping[str, str]] = {
    "machine": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
"""Name -> environment that keeps torch, oneDNN and MKL to some of the processor's instructions: other rounding, as on
another machine."""


class RunFailed(UserError, RuntimeError):
    """A run of the study that did not reach its end."""


@dataclass(frozen=True)
class Asked:
    """One run to make.

    Attributes:
        size: which configs, "tiny" or "debug".
        seed: number that fixes weights, data and sampling.
        layout: processes and threads of each, as "2x1".
        isa: one of `ISAS`.
    """

    size: str
    seed: int
    layout: str
    isa: str

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return run_name(self.seed, self.layout, self.isa)


Start = Callable[[Asked, Path], Mapping[str, Any]]
"""What makes one run in an empty folder and returns the fields of its record that `Asked` does not have."""


def run_all(
    out: Path,
    *,
    size: str = "tiny",
    seeds: Sequence[int] = range(5),
    layouts: Sequence[str] = ("2x1", "1x2"),
    isa: str = "machine",
    start: Start | None = None,
) -> StudyRecord:
    """Make the runs that a study does not have yet; after each the study's file is written anew.

    Args:
        out: folder of the study; every run writes into a separate folder in it.
        size: which configs, "tiny" or "debug".
        seeds: every seed is run in every layout.
        layouts: processes and threads of each, as "2x1".
        isa: one of `ISAS`.
        start: what makes one run; None: a process.

    Returns:
        All runs that the folder has.

    Raises:
        InputError: the folder holds something else, or runs of another size or recipe.
        RunFailed: a run did not reach its end; the ones before it are kept.
    """
    study = open_study(out, size)
    for layout, seed in product(layouts, seeds):
        asked = Asked(size, seed, layout, isa)
        if asked.name in {run.name for run in study.runs}:
            print(f"{asked.name}: finished before", flush=True)
            continue
        print(f"\n=== {asked.name}", flush=True)
        folder = out / asked.name
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped: one goes on to other results
        folder.mkdir()
        run = RunRecord(seed=seed, layout=layout, isa=isa, **(start or in_process)(asked, folder))
        study = StudyRecord(size, study.recipe, sorted([*study.runs, run], key=lambda r: (r.isa, r.seed, r.layout)))
        study.write(out / FILE)
    return study


def open_study(out: Path, size: str) -> StudyRecord:
    """Return what a folder holds of a study of today's recipe; a new folder, or an empty one, becomes its own.

    Raises:
        InputError: the folder holds something else, or runs of another size or recipe.
    """
    recipe = recipe_digest(size)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, expected a folder to write into")
    if not (out / FILE).exists():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"--out {out} holds something, but no {FILE} of a study; name a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        StudyRecord(size, recipe).write(out / FILE)
    study = read_study(out / FILE)
    for name, stored, asked in (("size", study.size, size), ("recipe", study.recipe, recipe)):
        if stored != asked:
            raise InputError(f"--out {out} holds runs of {name} {stored}, asked for is {asked}; name another folder")
    return study


def in_process(asked: Asked, folder: Path) -> Mapping[str, Any]:
    """Make one run in a separate process and return its figures and costs.

    Raises:
        RunFailed: the process ended with an error, after a message that names it.
    """
    words = ["--folder", str(folder.resolve()), "--size", asked.size, "--seed", str(asked.seed)]
    command = [sys.executable, "-m", one_run.__name__, *words, "--layout", asked.layout]
    started, before = time.perf_counter(), cpu_seconds()
    status = subprocess.run(command, cwd=ROOT, env=os.environ | ISAS[asked.isa], check=False).returncode
    if status:
        raise RunFailed(
            f"{asked.name} ended with status {status}; its own message stands above. The same command begins it anew"
        )
    costs = {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu_seconds() - before, 1)}
    return {**json.loads((folder / one_run.MEASURED).read_text(encoding="utf-8")), **costs}
