"""The house keeps its shape: who may import whom, what no file may be called, how long a file may grow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = {
    "medmo_core": ROOT / "medmo_core",
    "medmo_kernels": ROOT / "kernels/medmo_kernels",
    "medmo_recipes": ROOT / "recipes",
}
MAX_LINES = 500

# folder or file -> prefixes of our own modules it may import (besides itself). The longest matching key counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "medmo_kernels": (),
    "medmo_core": (),
    "medmo_core/__init__": ("medmo_core",),
    "medmo_core/boxes": ("medmo_kernels", "medmo_core.boxes.recognise", "medmo_core.boxes.grammars"),
    "medmo_core/box_batch": ("medmo_core.boxes", "medmo_core.boxes.recognise"),
    "medmo_core/image_boxes": ("medmo_core.boxes", "medmo_core.boxes.recognise", "medmo_core.boxes.grammars"),
    "medmo_core/box_text": ("medmo_core.boxes.grammars",),
    "medmo_core/box_grammars": (),
    "medmo_core/profile": ("medmo_core.boxes", "medmo_core.boxes.image_boxes", "medmo_core.boxes.many_texts"),
    "medmo_core/batch": ("medmo_kernels",),
    "medmo_core/accelerate": ("medmo_kernels", "medmo_core.modules"),
    "medmo_core/cliffs": ("medmo_kernels",),
    "medmo_core/doctor": ("medmo_kernels", "medmo_core.modules", "medmo_core.cliffs"),
    "medmo_core/modules": ("medmo_kernels",),
    "medmo_core/losses": ("medmo_kernels", "medmo_core.modules.backend"),
    "medmo_core/encoders": ("medmo_core.modules", "medmo_core.batch"),
    "medmo_core/decoders": ("medmo_core.modules",),
    "medmo_core/models": (
        "medmo_core.encoders",
        "medmo_core.decoders",
        "medmo_core.modules",
        "medmo_core.losses",
        "medmo_core.batch",
        "medmo_core.profile",
    ),
    "medmo_core/data": ("medmo_core.boxes", "medmo_core.boxes.image_boxes", "medmo_core.batch", "medmo_core.profile"),
    "medmo_core/datasets": ("medmo_core.data", "medmo_core.boxes", "medmo_core.boxes.image_boxes", "medmo_core.batch"),
    "medmo_core/rewards": (
        "medmo_core.boxes",
        "medmo_core.boxes.image_boxes",
        "medmo_core.profile",
        "medmo_core.data.records.sample",
        "medmo_core.findings",
        "medmo_core.metrics",
        "medmo_kernels",
    ),
    "medmo_core/metrics": (
        "medmo_core.boxes",
        "medmo_core.boxes.many_texts",
        "medmo_core.boxes.image_boxes",
        "medmo_core.data.records.sample",
        "medmo_core.findings",
        "medmo_kernels",
    ),
    "medmo_core/findings": (),
    "medmo_recipes": ("medmo_core",),
}
ENCODER_FAMILY = "medmo_core.encoders"


def python_files() -> list[tuple[str, Path]]:
    """Every source file with its dotted module name."""
    found = []
    for package, folder in SOURCE_ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found.append((".".join(parts), path))
    return found


FILES = python_files()


def imported_modules(module: str, path: Path) -> set[str]:
    """Absolute names of everything a file imports, at any depth of the file."""
    package_parts = module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package_parts[: len(package_parts) - node.level + 1]
                prefix = ".".join([*base, node.module] if node.module else base)
            else:
                prefix = node.module or ""
            names.update(f"{prefix}.{alias.name}" for alias in node.names)
    return names


def rule_for(module: str) -> str:
    """The longest key of MAY_IMPORT that covers this module."""
    as_path = module.replace(".", "/")
    keys = [key for key in MAY_IMPORT if as_path == key or as_path.startswith(key + "/")]
    return max(keys, key=len)


def covered(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violations(module: str, path: Path) -> list[str]:
    key = rule_for(module)
    own = key.replace("/", ".")
    allowed = (own, "medmo_core.errors", *MAY_IMPORT[key])
    ours = [n for n in imported_modules(module, path) if n.split(".")[0] in SOURCE_ROOTS]
    return [n for n in ours if not any(covered(n, prefix) for prefix in allowed)]


@pytest.mark.parametrize(("module", "path"), FILES, ids=[m for m, _ in FILES])
def test_imports_point_down(module: str, path: Path) -> None:
    assert violations(module, path) == []


def test_the_import_rule_catches_an_upward_import(tmp_path: Path) -> None:
    planted = tmp_path / "record.py"
    planted.write_text("from medmo_core.models.medmo import MedMO\n")
    assert violations("medmo_core.data.records.sample", planted) == ["medmo_core.models.medmo.MedMO"]


def test_kernel_rooms_do_not_import_one_another() -> None:
    """A room may be built of another's launcher and reference only when its docstring says so."""
    rooms = SOURCE_ROOTS["medmo_kernels"]
    for room in [p for p in rooms.iterdir() if (p / "__init__.py").exists()]:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
        others = {p.name for p in rooms.iterdir() if p.is_dir()} - {room.name}
        for path in room.rglob("*.py"):
            module = ".".join(["medmo_kernels", *path.relative_to(rooms).with_suffix("").parts])
            ours = [n for n in imported_modules(module, path) if n.startswith("medmo_kernels.")]
            used = {n.split(".")[1] for n in ours} & others
            assert all(f"`{name}`" in docstring for name in used), f"{path} uses {used}; its docstring does not say so"


def test_stages_do_not_import_one_another() -> None:
    stages = ("align", "instruct", "reinforce")
    for stage in stages:
        path = SOURCE_ROOTS["medmo_recipes"] / f"{stage}.py"
        names = imported_modules(f"medmo_recipes.{stage}", path)
        assert not [n for n in names for other in stages if other != stage and covered(n, f"medmo_recipes.{other}")]


FOREIGN_TRAINERS = ("transformers", "trl", "accelerate", "deepspeed", "lightning", "pytorch_lightning", "verl", "peft")


def test_core_and_stages_import_no_foreign_trainer_or_model() -> None:
    for module, path in FILES:
        assert not [n for n in imported_modules(module, path) if n.split(".")[0] in FOREIGN_TRAINERS], module


def test_triton_is_imported_only_where_kernels_live() -> None:
    for module, path in FILES:
        if not path.name.startswith("triton_kernel"):
            assert not [n for n in imported_modules(module, path) if n.split(".")[0] == "triton"], module


def test_the_kernels_folder_is_not_a_package() -> None:
    """`kernels` is also the name of a package that transformers probes for; ours must stay a plain folder."""
    assert not (ROOT / "kernels/__init__.py").exists()


def test_source_roots_are_imported_by_their_installed_names() -> None:
    everything = [*FILES, *(("tests." + p.stem, p) for p in (ROOT / "tests").rglob("*.py"))]
    wrong = {m for m, p in everything for n in imported_modules(m, p) if n.split(".")[0] in ("kernels", "recipes")}
    assert wrong == set()


def test_no_dustbin_names() -> None:
    banned = {"utils", "common", "helpers", "triton", "kernels", "misc"}
    assert [m for m, path in FILES if path.stem in banned] == []


def test_no_file_past_the_ceiling() -> None:
    tests = [(str(p.relative_to(ROOT)), p) for p in (ROOT / "tests").rglob("*.py")]
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, path in [*FILES, *tests]}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_public_functions_and_classes_are_documented() -> None:
    missing = []
    for module, path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            missing.append(module)
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(f"{module}.{node.name}")
    assert missing == []


def test_no_environment_variable_configures_anything() -> None:
    """The one debug switch is MEDMO_KERNELS; torchrun's variables are read by the launcher file alone."""
    readers = {m for m, p in FILES if re.search(r"os\.environ|getenv", p.read_text(encoding="utf-8"))}
    assert readers <= {"medmo_kernels.runtime", "medmo_recipes.training.distributed.world"}


def test_every_invariant_has_its_file_and_a_violation_that_it_notices() -> None:
    wanted = set(range(1, 31))
    files = sorted((ROOT / "tests/invariants").rglob("test_*.py"))
    numbers = [int(path.name.split("_")[1]) for path in files]
    assert len(numbers) == len(set(numbers)) and set(numbers) == wanted, sorted(wanted ^ set(numbers))
    blind = [path.name for path in files if not re.search(r"def test_\w*noticed", path.read_text(encoding="utf-8"))]
    assert blind == []
