"""Pinned requirements: complete, held to hashes, and the versions that constraints.txt names."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
LOCKED = re.findall(
    r"^([\w-]+)==([\w.]+)([^\n]*(?:\n    --hash=sha256:[0-9a-f]{64}[ \\]*)+)$",
    (ROOT / "requirements.txt").read_text(encoding="utf-8"),
    re.M,
)
"""Name, version, and the rest with its hashes, of every entry."""


def test_every_entry_has_its_hashes() -> None:
    entries = re.findall(r"^[\w-]+==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert len(entries) == len(LOCKED) > 80


def test_versions_are_those_chosen_by_hand() -> None:
    """Where the two differ, `make lock` has been forgotten."""
    differing = {name: version for name, version, _ in LOCKED if CONSTRAINTS.get(name, version) != version}
    assert differing == {}


def test_all_that_make_installs_is_locked_but_torch_itself() -> None:
    """Which build of torch a machine gets, its index decides; its hash cannot be known beforehand."""
    names = {name for name, _, _ in LOCKED}
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    wanted = set(re.findall(r'"([A-Za-z][\w-]*)>=[\d.]+"', setup)) | {"setuptools", "wheel", "dashscope", "trl"}
    assert wanted - names == {"torch", "xformers"}, "xformers is of the extra `cuda`, which make does not install"
    assert not [name for name in names if name.startswith("nvidia")]


def test_make_installs_by_hash_and_torch_by_version() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("$(STAMP): ")[2].partition("\n\n")[0]
    installs = [line.partition(" install ")[2] for line in recipe.splitlines() if " install " in line]
    assert installs == [
        "--no-deps --require-hashes -r requirements.txt", "$(TORCH)", "--no-deps --no-build-isolation -e .",
    ]  # fmt: skip
    assert CONSTRAINTS["torch"]
