"""Run the suite at two commits in turns, each with its own code, so that the machine's drift hits both equally."""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .schema import Result, ResultError, read

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 2
PACKAGES = {"medmo_core": "medmo_core", "medmo_kernels": "kernels/medmo_kernels", "medmo_recipes": "recipes"}
"""Import name -> folder."""
NATIVE = "kernels/medmo_kernels/_C.so"
NATIVE_SOURCES = "kernels/csrc"


def git(*words: str, root: Path) -> str:
    """Run git in a checkout and return what it says."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResultError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def short_name(name: str, root: Path | None = None) -> str:
    """Return a commit's short name, as results carry it.

    Raises:
        ResultError: there is no such file or commit.
    """
    try:
        return git("rev-parse", "--short=9", "--verify", f"{name}^{{commit}}", root=root or ROOT)
    except ResultError as error:
        raise ResultError(f"{name} is neither a result file nor a commit") from error


def measure_in_turns(
    a: str, b: str, words: Sequence[str], root: Path | None = None
) -> tuple[list[Result], list[Result]]:
    """Check both commits out beside this tree and run the suite in each: A, B, A, B.

    Args:
        a: a commit.
        b: another.
        words: options of `python -m benchmarks`.
        root: folder of the checkout; default this one.

    Returns:
        The results of A and those of B.

    Raises:
        ResultError: a run left no result; its output stands above.
    """
    root = root or ROOT
    with tempfile.TemporaryDirectory(prefix="medmo-compare-") as folder:
        space = Path(folder)
        with worktree(root, a, space / "a") as tree_a, worktree(root, b, space / "b") as tree_b:
            found: tuple[list[Result], list[Result]] = ([], [])
            for number in range(ROUNDS):
                for side, tree in enumerate((tree_a, tree_b)):
                    found[side].append(_run(tree, words, space / f"{tree.name}-{number}.json"))
            return found


@contextmanager
def worktree(root: Path, commit: str, path: Path) -> Iterator[Path]:
    """Check a commit out into a folder that goes away again."""
    git("worktree", "add", "--detach", str(path), commit, root=root)
    try:
        _bring_native(root, path)
        yield path
    finally:
        git("worktree", "remove", "--force", str(path), root=root)


def _bring_native(root: Path, tree: Path) -> None:
    """Copy the native library where its sources are the same; say that a commit runs without it where they are not."""
    if not (root / NATIVE).exists():
        return
    names = {path.name for side in (root, tree) for path in (side / NATIVE_SOURCES).glob("*")}
    same, *different = filecmp.cmpfiles(root / NATIVE_SOURCES, tree / NATIVE_SOURCES, sorted(names), shallow=False)
    if any(different):
        print(f"{tree.name}: other native sources, runs without the native part", file=sys.stderr)
    elif same:
        shutil.copy(root / NATIVE, tree / NATIVE)


def _run(tree: Path, words: Sequence[str], out: Path) -> Result:
    links = tree.with_name(f"{tree.name}-packages")  # import names differ from folder names
    links.mkdir(exist_ok=True)
    for name, folder in PACKAGES.items():
        if not (links / name).exists():
            (links / name).symlink_to(tree / folder)
    paths = [str(tree), str(links), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--out", str(out), *words], cwd=tree, env=environment, check=False
    )
    if not out.exists():
        raise ResultError(f"the suite left no result at {tree.name} (exit status {done.returncode})")
    return read(out)
