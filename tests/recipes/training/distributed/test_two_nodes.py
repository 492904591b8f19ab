"""Two launches that meet at one address, as on two machines, train the same sharded and replicated model as one.

The commands are those of docs/two_nodes.md, with one process each and both on this machine.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmo_recipes import instruct

ROOT = Path(__file__).resolve().parents[4]
PAGE = (ROOT / "docs/two_nodes.md").read_text(encoding="utf-8")
SETTINGS = ["--config", "debug_instruct", "model.dtype=float64", "train.docs_per_step=5", "train.steps=2",
            "train.save_every=2", "train.device=cpu", "train.z_loss=1e-3", "train.eval_every=2",
            "train.eval_split=test", "train.eval_docs=5", "train.attention_weight=2", "train.coordinate_spread=20",
            "data.sources.embedded:grounding=8"]  # fmt: skip
MEASURED = {"tokens_per_s", "samples_per_s", "step_s", "wait_s", "memory_gib"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def command_on_page() -> list[str]:
    """The words of the page's launch line, up to the module's own."""
    found = re.search(r"^(torchrun .*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1).replace("\\\n", " ").split()


def test_two_nodes_equal_one(tmp_path: Path) -> None:
    words = command_on_page()
    launcher, rest = words[: words.index("-m")], words[words.index("-m") :]
    assert launcher[:3] == ["torchrun", "--nnodes", "2"] and rest[:2] == ["-m", "medmo_recipes.instruct"]
    assert {"parallel.shard=true", "parallel.replicas=2"} <= set(rest)
    port = free_port()
    here = {"--nproc-per-node": "1", "--rdzv-endpoint": f"localhost:{port}", "--max-restarts": "0"}
    launcher = [here.get(before, word) for before, word in zip(["", *launcher], launcher, strict=False)]
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", *launcher[1:], "--local-addr", "localhost",
               "-m", "medmo_recipes.instruct", *SETTINGS, "parallel.shard=true", "parallel.replicas=2",
               f"train.out_dir={out}"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        assert instruct.main([*SETTINGS, f"train.out_dir={tmp_path / 'one'}"]) == 0
        said = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # torchrun takes its process along
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-6000:]
    logged = {}
    for folder in (tmp_path / "one", out):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        logged[folder] = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if "loss" in line]
    assert len(logged[out]) == 2 and any("val_loss/" in name for name in logged[out][1])
    assert all(line["attention_loss"] > 0 for line in logged[out])
    # Losses by task and held-out ones too.
    for mine, expected in zip(logged[out], logged[tmp_path / "one"], strict=True):
        assert mine == {name: pytest.approx(value, rel=1e-9) for name, value in expected.items()}
    one, two = (load_file(folder / "final/model.safetensors") for folder in logged)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-9), name
