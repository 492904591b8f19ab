"""The native library: built from the sources, equal to the reference, left out politely."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from medmo_kernels import assign, box_match, runtime
from medmo_kernels.box_match import assign_reference, box_match_reference
from medmo_kernels.box_match.cases import ragged_boxes

ROOT = Path(__file__).resolve().parents[2]
CAN_BUILD = bool(shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library compiled from the sources."""
    if not CAN_BUILD:
        pytest.skip("no CMake or no C++ compiler")
    folder = tmp_path_factory.mktemp("native")
    torch_root = Path(torch.__file__).parent
    build = str(folder / "build")
    configure = ["cmake", "-S", str(ROOT), "-B", build, f"-DTORCH_ROOT={torch_root}", f"-DMEDMO_OUTPUT={folder}"]
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return folder / "_C.so"


@pytest.fixture
def native(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ops on the CPU call the native library: the installed one, or the one just built."""
    if not runtime.LIBRARY.exists():
        monkeypatch.setattr(runtime, "LIBRARY", built)
        runtime._load.cache_clear()
    assert runtime.has_native(), runtime.native_status()
    yield
    if built == runtime.LIBRARY:
        runtime._load.cache_clear()


def test_assignment_equals_the_reference(native: None) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, cols in [(1, 1), (2, 5), (7, 3), (12, 12)]:
        cost = torch.randn(40, rows, cols, generator=generator, dtype=torch.float64)
        cost[torch.rand(cost.shape, generator=generator) < 0.25] = torch.inf
        cost[0, 0, 0] = torch.nan
        num_rows = torch.randint(0, rows + 1, (40,), generator=generator)
        num_cols = torch.randint(0, cols + 1, (40,), generator=generator)
        # Costs drawn from a continuum have one optimum.
        assert torch.equal(assign(cost, num_rows, num_cols), assign_reference(cost, num_rows, num_cols))


@pytest.mark.parametrize("cost", ["overlap", "iou", "giou", "medmo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matching_equals_the_reference(native: None, cost: str, dtype: torch.dtype) -> None:
    counts = [(1, 1), (0, 3), (4, 0), (9, 5), (6, 6), (3, 12)]
    arguments = ragged_boxes(counts, torch.Generator().manual_seed(1), dtype)
    # One of many equal costs (no overlap at all) may be chosen freely; giou and medmo have none.
    for labels in ({}, {"pred_labels": None, "truth_labels": None}):
        got, expected = (f(**{**arguments, **labels, "cost": cost}) for f in (box_match, box_match_reference))
        assert torch.equal(got >= 0, expected >= 0) or cost in ("overlap", "iou")
        if cost in ("giou", "medmo"):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 5), (9, 2), (64, 64), (70, 33)])
def test_the_optimum_equals_scipys(native: None, shape: tuple[int, int]) -> None:
    """Widths that fill the vector lanes and widths that do not; ties, large costs, forbidden pairs."""
    cost = torch.randn(30, *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    cost[:6] = cost[:6].round()
    cost[6:12] *= 1e6
    holes = cost.clone()
    holes[torch.rand(holes.shape, generator=torch.Generator().manual_seed(0)) < 0.4] = -torch.inf
    for costs in (cost, holes):
        allowed = costs.isfinite().numpy()
        for matrix, usable, match in zip(costs.numpy(), allowed, assign(costs).numpy(), strict=True):
            rows, cols = linear_sum_assignment(np.where(usable, matrix, 1e9))
            kept = usable[rows, cols]
            chosen = np.flatnonzero(match >= 0)
            assert len(chosen) == kept.sum() == len(set(match[chosen].tolist()))
            total, best = matrix[chosen, match[chosen]].sum(), matrix[rows[kept], cols[kept]].sum()
            assert total == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_more_threads_change_nothing(native: None) -> None:
    arguments = ragged_boxes([(5, 7)] * 64, torch.Generator().manual_seed(2), torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = box_match(**arguments, cost="giou")
        torch.set_num_threads(3)
        assert torch.equal(box_match(**arguments, cost="giou"), one)
    finally:
        torch.set_num_threads(before)


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "reference")
    assert not runtime.has_native()
    assert runtime.native_status() == "off: MEDMO_KERNELS=reference"
    monkeypatch.setenv(runtime.SWITCH, "fast")
    with pytest.raises(ValueError, match="MEDMO_KERNELS=fast: expected one of auto, reference"):
        runtime.has_native()


def test_a_missing_and_a_broken_library_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, message in ((None, "not built: run `make native`"), (b"no library", "does not load beside torch")):
        library = tmp_path / "_C.so"
        if content is not None:
            library.write_bytes(content)
        monkeypatch.setattr(runtime, "LIBRARY", library)
        runtime._load.cache_clear()
        assert message in runtime.native_status()
        assert box_match(torch.ones(0, 4), torch.ones(0, 4), torch.tensor([0]), torch.tensor([0])).shape == (0,)
    runtime._load.cache_clear()


@pytest.mark.parametrize("lacking", ["torch", "cmake", "compiler"])
def test_a_build_without_its_tools_warns_and_goes_on(
    lacking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from setuptools import Distribution

    import native_build

    find_spec = importlib.util.find_spec
    if lacking == "torch":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    elif lacking == "cmake":
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    else:
        fake = tmp_path / "cmake"
        fake.write_text(f"#!{sys.executable}\nraise SystemExit('No CMAKE_CXX_COMPILER could be found.')\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # cmake is looked for beside Python first
    arguments = native_build.native_build_arguments()
    distribution = Distribution({"name": "medmo", **arguments})
    command = native_build.BuildNative(distribution)
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    command.run()
    assert command.get_outputs() == []
    assert "native library left out" in caplog.text
    if lacking == "compiler":
        assert "No CMAKE_CXX_COMPILER" in capfd.readouterr().err
