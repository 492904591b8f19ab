"""Comparing two results: planted shifts are found, noise is not, and two commits each run with their own code."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.suite import commits, schema
from benchmarks.suite.machine import default_device, describe, folder_name

if TYPE_CHECKING:
    from conftest import Planter

Steady = Callable[[float], tuple[float, ...]]


def noisy(middle: float, seed: int) -> tuple[float, ...]:
    """Return 25 durations with the spread of a busy machine."""
    return tuple(middle * np.random.default_rng(seed).lognormal(0.0, 0.2, 25))


def run(folder: Path, a: schema.Result, b: schema.Result, *words: str) -> int:
    for name, result in (("a", a), ("b", b)):
        schema.write(result, folder / f"{name}.json")
    return compare.main([str(folder / "a.json"), str(folder / "b.json"), *words])


def line_of(text: str, part: str) -> str:
    return next(line for line in text.splitlines() if part in line)


def test_shifts_are_found_and_noise_is_not(
    plant: "Planter", steady: Steady, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(fast: float, noise: int, middle: float, slow: float) -> schema.Result:
        return plant.result(
            plant.row("ours", steady(fast), case="fast"),
            plant.row("ours", noisy(middle, noise), case="noisy"),
            plant.row("ours", steady(slow), case="slow"),
            plant.row("SciPy", steady(500.0), case="slow"),
        )

    assert run(tmp_path, result(200.0, 1, 100.0, 100.0), result(100.0, 2, 104.0, 110.0)) == 1
    text = capsys.readouterr().out
    assert "2.00x [" in line_of(text, "giou, fast") and line_of(text, "giou, fast").endswith("faster")
    assert line_of(text, "giou, noisy").endswith("within noise")
    assert "0.91x [" in line_of(text, "giou, slow") and line_of(text, "giou, slow").endswith("SLOWER")
    assert "ours: 1 faster, 1 within noise, 1 slower, 1 of them by more than 3%" in text
    assert "SciPy" not in text, "peers are listed on demand"
    assert "drift: 1 ways whose code is not ours have a median ratio of 1.000" in text


def test_a_small_slowdown_is_told_and_forgiven(
    plant: "Planter", steady: Steady, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (plant.result(plant.row("ours", steady(value))) for value in (100.0, 102.0))
    assert run(tmp_path, before, after) == 0
    text = capsys.readouterr().out
    assert line_of(text, "giou").endswith("SLOWER") and "1 slower, 0 of them" in text


def test_peers_are_a_control(
    plant: "Planter", steady: Steady, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that became slower shows that the machine did; it does not decide the exit status."""
    before = plant.result(plant.row("ours", steady(100.0)), plant.row("SciPy", steady(100.0)))
    after = plant.result(plant.row("ours", steady(100.0)), plant.row("SciPy", steady(150.0)))
    assert run(tmp_path, before, after, "--all") == 0
    text = capsys.readouterr().out
    assert line_of(text, "/ SciPy").endswith("SLOWER") and "median ratio of 0.667" in text


def test_a_lost_figure_is_no_pass(
    plant: "Planter", steady: Steady, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plant.result(plant.row("ours", steady(100.0)))
    after = plant.result(plant.row("ours", status="wrong", reason="off by 2"))
    assert run(tmp_path, before, after) == 1
    assert "LOST: kernels / giou, 7 pairs, float32, forward had a figure in A and has none in B: wrong: off by 2" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("machine", "said"), [({"device": "another"}, "differ in device"), ({"threads": 2}, "differ in threads")]
)
def test_machines_that_differ_are_refused(
    plant: "Planter", steady: Steady, tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: dict, said: str
) -> None:
    row = plant.row("ours", steady(100.0))
    assert run(tmp_path, plant.result(row), plant.result(row, **machine)) == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path: Path, plant: "Planter", steady: Steady) -> tuple[Path, str, str]:
    """Return a checkout of two commits whose suites say that ours takes 100 and 200 us, and the commits."""
    root = tmp_path / "repository"
    (root / "benchmarks").mkdir(parents=True)
    package = root / "medmo_core"
    package.mkdir()
    for name in ("kernels/medmo_kernels", "recipes"):
        (root / name).mkdir(parents=True)
    (root / "benchmarks/__main__.py").write_text(
        "import pathlib, shutil, sys, medmo_core\n"
        "tree = pathlib.Path(__file__).parents[1]\n"
        "assert pathlib.Path(medmo_core.__file__).resolve().parents[1] == tree, medmo_core.__file__\n"
        "with open(sys.argv[4], 'a') as log: print(tree.name, medmo_core.SPEED, file=log)\n"
        "shutil.copy(tree / 'planted.json', sys.argv[sys.argv.index('--out') + 1])\n",
        encoding="utf-8",
    )
    (root / "kernels/medmo_kernels/__init__.py").touch()
    (root / "recipes/__init__.py").touch()

    def git(*words: str) -> str:
        author = ("-c", "user.name=a test", "-c", "user.email=test@example.org")
        done = subprocess.run(["git", "-C", str(root), *author, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    names = []
    for speed in (100.0, 200.0):
        (package / "__init__.py").write_text(f"SPEED = {speed}\n", encoding="utf-8")
        schema.write(plant.result(plant.row("ours", steady(speed))), root / "planted.json")
        git("add", "--all")
        git("commit", "--quiet", "--message", f"{speed}")
        names.append(git("rev-parse", "--short=9", "HEAD"))
    return root, names[0], names[1]


def test_two_commits_run_in_turns_each_with_its_own_code(
    repository: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, first, second = repository
    monkeypatch.setattr(commits, "ROOT", root)
    log = tmp_path / "log"
    assert compare.main([first, "HEAD", "--run", "-k", str(log)]) == 1
    # The stub of the suite takes what stands behind --out, FILE and -k as the name of its log.
    assert log.read_text().split("\n")[:4] == ["a 100.0", "b 200.0", "a 100.0", "b 200.0"]
    assert "0.50x" in capsys.readouterr().out
    listed = subprocess.run(["git", "-C", str(root), "worktree", "list"], check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1, "the worktrees are gone"
    assert compare.main([second, first, "--run", "-k", str(log)]) == 0, "faster is no fault"


def test_commits_are_looked_up_among_stored_results(
    repository: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: "Planter",
    steady: Steady, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, first, second = repository
    monkeypatch.setattr(commits, "ROOT", root)
    folder = tmp_path / "results" / folder_name(describe(default_device()))
    schema.write(plant.result(plant.row("ours", steady(100.0)), commit=first), folder / "first.json")
    schema.write(plant.result(plant.row("ours", steady(50.0)), commit=second, changed=True), folder / "changed.json")
    assert compare.main([first, second], results=tmp_path / "results") == 2
    assert f"commit {second} has no result" in capsys.readouterr().err, "files that differ from the commit do not count"
    schema.write(plant.result(plant.row("ours", steady(50.0)), commit=second), folder / "second.json")
    assert compare.main([first, second], results=tmp_path / "results") == 0
    assert compare.main(["nonsense", second], results=tmp_path / "results") == 2
