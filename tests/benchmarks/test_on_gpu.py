"""The one command for a machine with a GPU runs here in its CPU form, and leaves results that can be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from medmo_kernels import runtime

ROOT = Path(__file__).resolve().parents[2]


def test_first_contact_runs_and_leaves_results(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, runtime.SWITCH: "auto", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks/on_gpu.sh"), str(tmp_path), "giou"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in (tmp_path / "summary.txt").read_text().splitlines()] == ["passed"] * 3
    doctor = json.loads((tmp_path / "doctor.json").read_text())
    assert doctor["verdicts"] and all(row["passed"] for row in doctor["verdicts"])
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert result["cuda"] == torch.cuda.is_available() and result["versions"]["torch"] == torch.__version__
    ours = [row for row in result["timings"] if row["provider"] == "ours"]
    assert ours and all(row["median_us"] > 0 for row in ours)
    assert "| `giou` |" in (tmp_path / "kernels.md").read_text()


def test_a_wrong_kernel_has_no_time(tmp_path: Path) -> None:
    """A figure of an op that computes something else must not be published."""
    code = (
        "import dataclasses, sys, torch\n"
        "from benchmarks import bench_kernels as b\n"
        "spec = next(s for s in b.specs(['giou']) if s.name == 'giou')\n"
        "wrong = dataclasses.replace(spec, function=lambda **a: spec.function(**a) + 0.1, kernel_sizes={'odd': 7})\n"
        "b.specs = lambda rooms: [wrong]\n"
        f"sys.exit(b.main(['--out', {str(tmp_path)!r}]))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = json.loads((tmp_path / "kernels.json").read_text())["timings"]
    (ours,) = [row for row in rows if row["provider"] == "ours"]
    assert "off by 0.1" in ours["wrong"] and "median_us" not in ours
    assert "WRONG" in (tmp_path / "kernels.md").read_text()
