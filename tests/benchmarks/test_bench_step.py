"""The benchmark of a whole training step: the same weights, documents and loss on both sides, or no figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys, torch
from benchmarks import bench_step as b
b.SIZES["cpu"] = b.SIZES["cuda"] = b.Size("debug", 2, 4, 16, 6, torch.float32, "adamw")
b.header = lambda device: {"device": "a test", "date": "", "commit": "", "versions": {},
                           "ceilings": {"matmul_flops_per_s": 1e11}}
honest = b.for_transformers

def other_pixels(*arguments):
    inputs = honest(*arguments)
    return inputs | {"pixel_values": inputs["pixel_values"].flip(0)}

statuses = []
for kind in ("right", "wrong"):
    b.for_transformers = honest if kind == "right" else other_pixels
    statuses.append(b.main(["--out", sys.argv[1] + "/" + kind, "--budget-s", "3"]))
sys.exit(0 if statuses == [0, 1] else 7)
"""


def test_both_take_the_same_step_or_there_is_no_figure(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True,
                          env=environment, timeout=250, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("right", "wrong"):
        result = json.loads((tmp_path / kind / "step.json").read_text())
        ours, theirs = result["steps"][:2]
        assert ours["way"] == "ours" and ours["median_s"] > 0 and 0 < ours["mfu"] < 1
        assert theirs["way"].startswith("transformers, ")
        if kind == "wrong":
            assert "is not ours" in theirs["wrong"] and "median_s" not in theirs
            assert "WRONG" in (tmp_path / kind / "step.md").read_text()
        else:
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5) and theirs["tokens_per_s"] > 0
