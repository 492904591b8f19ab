"""One area under mutation: a copy of the code with every mutant in it, a seeded sample of them, and what survived.

mutmut writes all mutants of a function into one file and switches between them by name. Each runs in a process that is
forked from one that has imported torch and the other libraries, but neither the code nor its tests: a value that these
keep (a cached tokenizer, a table built at import) is made by the mutant too. Code outside functions and decorated
functions are left alone.
"""

import contextlib
import importlib
import json
import os
import random
import re
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .equivalent import LIST, Equivalents, Mutant
from .wording import differ_in_wording_alone

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
COPIES = {"medmo_core": "medmo_core", "medmo_recipes": "recipes", "tests": "tests", "docs": "docs"}
"""Name of a copy -> folder of the checkout, which may change while mutants run."""
PRELOADED = (
    "torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "numpy", "scipy.optimize", "PIL.Image", "einops",
    "hypothesis.strategies", "safetensors.torch", "tokenizers", "transformers", "pydicom", "nibabel", "tifffile",
    *(f"medmo_kernels.{room.parent.name}" for room in sorted((ROOT / "kernels/medmo_kernels").glob("*/op.py"))),
)  # fmt: skip
"""What takes long to import and is never mutated; a library that is not installed is passed over."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ALIVE = {0: "survived", 5: "no test", 33: "no test"}
"""Exit status that mutmut stores -> what became of a mutant that nothing noticed."""
GOAL = 0.9
"""Least share of the sampled mutants that are not equivalent which tests must notice."""


def prepare(name: str, area: dict[str, Any]) -> None:
    """Make the folder of an area, with a copy of the code, and stand in it."""
    folder = ROOT / "build/mutants" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for copy, origin in COPIES.items():
        shutil.copytree(ROOT / origin, folder / copy, ignore=shutil.ignore_patterns("__pycache__"))
    os.chdir(folder)
    settings = {
        "source_paths": ["medmo_core", "medmo_recipes"],
        "also_copy": ["docs"],
        "only_mutate": [str(path) for pattern in area["modules"] for path in sorted(Path().glob(pattern))],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-W", "ignore"],
        "pytest_add_cli_args_test_selection": [
            *area["tests"],
            *(f"--{'deselect' if '::' in test else 'ignore'}={test}" for test in area.get("without", ())),
        ],
        "process_isolation": "forkserver",
        "forkserver_warmup": "none",
        "timeout_multiplier": 8.0,
        "timeout_constant": 1.5,
        "use_git_change_detection": False,
    }
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    Path("pyproject.toml").write_text(f"{text}\n[tool.mutmut]\n{table}", encoding="utf-8")
    # For processes that tests start; this one gets the same from mutmut.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "mutants"), os.environ.get("PYTHONPATH", "")])


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Send what mutmut prints, a spinner above all, to log.txt of the area; show its end where mutmut gives up."""
    path = Path("log.txt").absolute()  # mutmut may leave while it stands in another folder
    with path.open("a", encoding="utf-8") as log:
        before, sys.stdout, sys.__stdout__ = (sys.stdout, sys.__stdout__), log, log
        try:
            yield
        except SystemExit:
            log.flush()
            lines = re.split(r"[\r\n]+", path.read_text(encoding="utf-8"))
            print(*[line for line in lines if line[:1] not in SPINNER][-60:], sep="\n", file=before[0])
            print(f"Run pytest in {Path.cwd() / 'mutants'} to see more.", file=before[0])
            raise
        finally:
            sys.stdout, sys.__stdout__ = before


def preload() -> None:
    """Import what takes long, for all processes that are forked from this one."""
    # Triton reads it when it is imported (see tests/conftest.py), which others may do.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for module in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def planted() -> Iterator[Mutant]:
    """Let mutmut write every mutant, and yield those that change more than the wording of a message."""
    from mutmut import __main__ as mutmut
    from mutmut.mutation.data import MutantLineSpans
    from mutmut.mutation.diff_apply import generated_function_names

    with logged(), mutmut.CatchOutput():
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(1)
    _, files = mutmut.collect_source_file_mutation_data(mutant_names=())
    for path, data in files.items():
        spans = MutantLineSpans.load(path)
        for key in data.exit_code_by_key:
            names = generated_function_names(key)
            original, mutated = (
                text.replace(name, "f") for text, name in zip(spans.read_function_sources(names), names, strict=True)
            )
            if not differ_in_wording_alone(original, mutated):
                yield described(key, original, mutated)


def described(key: str, original: str, mutated: str) -> Mutant:
    """Return a mutant with the lines that it changes."""
    before, after = original.splitlines(), mutated.splitlines()
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    removed, added = (" ".join(line.strip() for line in lines[head : len(lines) - tail]) for lines in (before, after))
    module, _, name = key.partition("__mutmut_")[0].rpartition(".")
    function = f"{module}.{name.removeprefix('xǁ').removeprefix('x_').replace('ǁ', '.')}"
    return Mutant(key, function, removed, added)


def sampled(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """Return at most `size` mutants of every module, for a seed the first of one order; all where `size` is 0."""
    modules: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        modules.setdefault(mutant.key.rpartition(".")[0], []).append(mutant)
    drawn = []
    for module, members in modules.items():
        shuffled = random.Random(f"{seed} {module}").sample(members, len(members))
        drawn += shuffled[: size or None]
    return drawn


def outcomes(mutants: list[Mutant]) -> dict[str, int]:
    """Run the tests against every mutant and return the exit status by key.

    First the tests that called the function when all was well; then, for a mutant that these let pass, all of the area:
    a function whose result is kept was called by the first test that asked, or by none, and concerns many.
    """
    statuses = _run(mutants)
    stats = Path("mutants/mutmut-stats.json")
    values = json.loads(stats.read_text(encoding="utf-8"))
    alive = [mutant for mutant in mutants if statuses[mutant.key] in ALIVE]
    calls = values["tests_by_mangled_function_name"]
    calls |= {mutant.key.partition("__mutmut_")[0]: list(values["duration_by_test"]) for mutant in alive}
    stats.write_text(json.dumps(values), encoding="utf-8")
    return _run(alive) if alive else statuses


def _run(mutants: list[Mutant]) -> dict[str, int]:
    from mutmut import __main__ as mutmut
    from mutmut.state import state

    state().tests_by_mangled_function_name.clear()  # read anew from the file
    with logged():
        mutmut._run(tuple(mutant.key for mutant in mutants), 1)
    _, files = mutmut.collect_source_file_mutation_data(mutant_names=())
    return {key: status for data in files.values() for key, status in data.exit_code_by_key.items()}


def main(size: int, seed: int, name: str) -> int:
    """Run one area, print what survived, and return 1 where fewer than the goal died."""
    preload()
    prepare(name, tomllib.loads((HERE / "areas.toml").read_text(encoding="utf-8"))[name])
    everything = list(planted())
    mutants = sampled(everything, size, seed)
    statuses = outcomes(mutants)
    known = Equivalents(LIST.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    print(f"\n== {name}: {len(mutants)} of {len(everything)} mutants, seed {seed}")
    for mutant in mutants:
        verdict = ALIVE.get(statuses[mutant.key], "died")
        if verdict != "died" and known.has(mutant):
            verdict = "equivalent"
        counts[verdict] += 1
        if verdict not in ("died", "equivalent"):
            print(f"{verdict}: {mutant.function}\n  - {mutant.removed}\n  + {mutant.added}")
    asked = len(mutants) - counts["equivalent"]
    share = counts["died"] / asked if asked else 1.0
    print(f"{name}: {counts['died']} of {asked} died ({share:.0%}), {counts['equivalent']} equivalent left out")
    return int(share < GOAL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
