"""Every debug config runs two steps, and a resumed third step equals an uninterrupted one bit for bit."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmo_recipes.configs import CONFIGS

DEBUG = [name for name in CONFIGS if name.startswith("debug_")]
TIMING = ("_s", "/s", "memory_gib", "mfu")
"""How the names of what depends on the machine end."""


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.endswith(TIMING)}
        for line in lines
        if "step" in line and "event" not in line
    ]


@pytest.mark.parametrize("name", DEBUG)
def test_resumed_step_is_bit_exact(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]().change(
        optim={"schedule": "constant", "warmup_ratio": 0.0},
        train={"steps": 3, "save_every": 2, "device": "cpu", "out_dir": str(tmp_path / "whole")},
    )
    stage = importlib.import_module(f"medmo_recipes.{config.stage}")
    assert stage.run(config)
    parts = config.change(train={"steps": 2, "out_dir": str(tmp_path / "parts")})
    assert stage.run(parts)
    torch.manual_seed(999)  # whatever happened in between must not matter
    torch.rand(3)
    assert stage.run(parts.change(train={"steps": 3, "resume": True}))
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert len(numbers(tmp_path / "whole")) == 3
    for file in ("final/model.safetensors", "checkpoints/step-000003/tensors-0-0.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert whole.keys() == resumed.keys()
        for key in whole:
            assert torch.equal(whole[key], resumed[key]), key
