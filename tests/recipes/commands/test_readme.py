"""The README's examples run as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, load_facts
from medmo_recipes.configs import CONFIGS

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block_after(heading: str, language: str) -> str:
    """Return the first code block of a language below a heading."""
    section = README.split(f"## {heading}\n", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def run_bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with the installed `medmo` on its path."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-e"],
        input=script,
        text=True,
        capture_output=True,
        cwd=folder,
        env=environment,
        timeout=240,
        check=False,
    )


def test_the_own_data_example_runs_as_printed(tmp_path: Path) -> None:
    record = next(r for r in load_facts() if r.source == "ct-abdomen")
    shutil.copy(EMBEDDED_ROOT / record.path, tmp_path / "scan.png")
    script = block_after("Your own data in ten lines", "bash")
    assert len(script.splitlines()) <= 10
    done = run_bash(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 samples, 0 faults" in done.stdout
    assert (tmp_path / "runs/mine/final/model.safetensors").is_file()
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"


def test_the_door_runs_as_printed_with_nothing_trained(tmp_path: Path) -> None:
    script = block_after("Ask a checkpoint", "python")
    asked = "assert len(answers) == 2 and len(answer.boxes) and answer.images[0].size == (199, 146)"
    command = [sys.executable, "-c", f"{script}\n{asked}"]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "is a toy" in done.stderr
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"


def test_the_first_command_runs_as_printed_with_nothing_trained(tmp_path: Path) -> None:
    """In a folder that has the images where the repository has them."""
    (tmp_path / "medmo_core").symlink_to(ROOT / "medmo_core")
    done = run_bash(block_after("Ask a checkpoint", "bash"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nbox " in done.stdout and "is a toy" in done.stderr
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
