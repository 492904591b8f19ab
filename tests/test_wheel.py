"""The wheel carries everything: data, tokenizer and templates work without the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the tracked tree and unpack it into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    packages = ("medmo_core", "kernels", "recipes")
    files = ("setup.py", "native_build.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "CMakeLists.txt")
    tree.mkdir()
    for name in (*packages, *files):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tree / name)], check=True)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("medmo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(code: str, site: Path, cwd: Path) -> str:
    """Run Python with the unpacked wheel before anything else on the path."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedded_set_is_shown_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    code = (
        "import medmo_core, medmo_recipes.cli as c; print(medmo_core.__file__);"
        "print([c.main([name, '--out', name + '.png']) for name in ('embedded', 'sample')])"
    )
    shown = run(code, installed, tmp_path)
    assert shown.startswith(str(installed))
    assert shown.rstrip().endswith("[0, 0]"), shown
    sheet = (tmp_path / "embedded.png").read_bytes()
    assert len(sheet) > 100_000
    assert (tmp_path / "sample.png").read_bytes() == sheet, "the former name paints the same sheet"


def test_tokenizer_tables_and_report_travel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from medmo_core.data.text.tokenizer import Tokenizer;"
        "from medmo_recipes.pages.page_templates import TEMPLATES;"
        "import medmo_kernels as kernels;"
        "print(Tokenizer.embedded().vocab_size > 1000, len(list(TEMPLATES.glob('*.j2'))) == 4, kernels.__file__)"
    )
    assert run(code, installed, tmp_path).startswith("True True " + str(installed))


def test_the_demo_checkpoint_answers_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    code = (
        "import medmo_core; from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT as root;"
        "from medmo_core.inference import ask, load; kit = load('medmo-tiny-demo');"
        "print(kit.base, len(ask(kit, root / 'images/ct-contrast-006.png', 'Where is the liver?').boxes) > 0)"
    )
    files = installed / "medmo_core/demo/files"
    assert run(code, installed, tmp_path).split() == [str(files / "checkpoint"), "True"]
    assert (files / "README.md").is_file() and (files / "held_out.json").is_file()


def test_the_wheel_holds_only_our_packages(installed: Path) -> None:
    found = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert found == {"medmo_core", "medmo_kernels", "medmo_recipes"}
