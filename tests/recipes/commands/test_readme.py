"""The README's examples run as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, load_facts
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block_after(heading: str, language: str) -> str:
    """Return the first code block of a language below a heading."""
    section = README.split(f"## {heading}\n", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_own_data_example_runs_as_printed(tmp_path: Path) -> None:
    record = next(r for r in load_facts() if r.source == "ct-abdomen")
    shutil.copy(EMBEDDED_ROOT / record.path, tmp_path / "scan.png")
    script = block_after("Your own data in ten lines", "bash")
    assert len(script.splitlines()) <= 10
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e"],
        input=script,
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 samples, 0 faults" in done.stdout
    assert (tmp_path / "runs/mine/final/model.safetensors").is_file()
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"


def test_the_door_runs_as_printed_on_the_quickstarts_checkpoint(tmp_path: Path) -> None:
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    final = tmp_path / "runs/quickstart/reinforce/final"
    kit.model.save_pretrained(final, tokenizer=kit.tokenizer, profile=kit.profile)
    script = block_after("Ask a checkpoint", "python")
    command = [sys.executable, "-c", f"{script}\nassert len(answers) == 2 and answer.images[0].size == (199, 146)"]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"


def test_the_door_stands_before_any_module_and_the_page_is_short() -> None:
    assert README.index("from medmo_core.inference import ask") < README.index("from medmo_core.modules")
    assert README.count("\n") < 180
    assert "not measured yet" not in README


def test_the_module_example_runs_as_printed(tmp_path: Path) -> None:
    script = block_after("Use a module in another model", "python")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_every_path_and_config_named_exists() -> None:
    for path in [*re.findall(r"\]\(([\w./]+)\)", README), *re.findall(r"`((?:medmo_core|recipes)/[\w./]+)`", README)]:
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"--config (\w+)", README)) <= set(CONFIGS)
