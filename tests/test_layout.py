"""The house keeps its shape: who may import whom, what no file may be called, how long a file may grow."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tools.house.docstrings import offences
from tools.house.habits import path_changes
from tools.house.imports import circles, graph_of, imports_of, is_package, longest_chain, module_files
from tools.house.sources import LIBRARY, SHIPPED, SourceFile, of_parts, python_files, sources

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500
MAX_FILES = 16
LONGEST_CHAIN = 18
"""Files on the longest chain of imports in the library; it may not grow."""

BOXES = ("medmo_kernels", "medmo_core.boxes")
SAMPLES = ("medmo_core.boxes", "medmo_core.data.records")
SETTINGS = ("medmo_core", "medmo_recipes.settings")
TRAINING = (*SETTINGS, "medmo_recipes.training.distributed", "medmo_recipes.training.model")

# room -> rooms or files it may import, beside itself and the ground (`GROUND`). A room is a folder, or a file that
# stands in none; the longest matching key counts, and every file has one.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "medmo_kernels": (),
    "medmo_core": ("medmo_core",),
    "medmo_core.choices": (),
    "medmo_core.durable": (),
    "medmo_core.errors": (),
    "medmo_core.moved": (),
    "medmo_core.nearest": (),
    "medmo_core.notice": (),
    "medmo_core.optional": (),
    "medmo_core.printable": (),
    "medmo_core.boxes": ("medmo_kernels",),
    "medmo_core.profile": ("medmo_core.boxes",),
    "medmo_core.batch": ("medmo_kernels",),
    "medmo_core.accelerate": ("medmo_kernels", "medmo_core.modules"),
    "medmo_core.cliffs": ("medmo_kernels",),
    "medmo_core.__main__": ("medmo_core.doctor",),
    "medmo_core.doctor": ("medmo_kernels", "medmo_core.modules", "medmo_core.cliffs"),
    "medmo_core.generation": ("medmo_kernels", "medmo_core.batch"),
    "medmo_core.modules": ("medmo_kernels", "medmo_core.generation.kv_cache"),
    "medmo_core.losses": ("medmo_kernels", "medmo_core.modules.backend"),
    "medmo_core.encoders": ("medmo_core.modules", "medmo_core.batch"),
    "medmo_core.decoders": ("medmo_core.modules", "medmo_core.generation.kv_cache"),
    "medmo_core.demo": (),
    "medmo_core.models.official": ("medmo_core.profile", "medmo_core.demo"),
    "medmo_core.models": (
        "medmo_core.models.official",
        "medmo_core.encoders",
        "medmo_core.decoders",
        "medmo_core.modules",
        "medmo_core.losses",
        "medmo_core.generation",
        "medmo_core.batch",
        "medmo_core.profile",
    ),
    "medmo_core.data.records": ("medmo_core.boxes",),
    "medmo_core.data.images": (*SAMPLES, "medmo_core.batch"),
    "medmo_core.data.sources": (*SAMPLES, "medmo_core.data.images"),
    "medmo_core.data.text": ("medmo_core.batch",),
    "medmo_core.data": ("medmo_core.data", "medmo_core.boxes", "medmo_core.batch", "medmo_core.profile"),
    "medmo_core.datasets.embedded": ("medmo_core.data", "medmo_core.boxes"),
    "medmo_core.datasets": ("medmo_core.data", "medmo_core.boxes"),
    "medmo_core.convert": ("medmo_core.data.records", "medmo_core.data.images"),
    "medmo_core.inference": ("medmo_core.data", "medmo_core.boxes", "medmo_core.profile", "medmo_core.models"),
    "medmo_core.findings": (),
    "medmo_core.metrics": (*BOXES, "medmo_core.data.records", "medmo_core.findings"),
    "medmo_core.rewards": (
        *BOXES,
        "medmo_core.profile",
        "medmo_core.data.records",
        "medmo_core.findings",
        "medmo_core.metrics",
    ),
    "medmo_recipes.settings": ("medmo_core",),
    "medmo_recipes.configs": SETTINGS,
    "medmo_recipes.training.model": SETTINGS,
    "medmo_recipes.training.distributed": (
        *SETTINGS,
        "medmo_recipes.training.model.bfloat16_products",
        "medmo_recipes.training.model.float8",
    ),
    "medmo_recipes.training.loading": (*SETTINGS, "medmo_recipes.training.distributed"),
    "medmo_recipes.training.optim": TRAINING,
    "medmo_recipes.training.checkpoints": (*TRAINING, "medmo_recipes.training.optim"),
    "medmo_recipes.training.monitoring": ("medmo_core", "medmo_recipes.training.distributed"),
    "medmo_recipes.training.sizing": (*TRAINING, "medmo_recipes.training"),
    "medmo_recipes.training.loop": (*TRAINING, "medmo_recipes.training", "medmo_recipes.configs"),
    "medmo_recipes.reinforcement.reward_calls": SETTINGS,
    "medmo_recipes.reinforcement": (*TRAINING, "medmo_recipes.training.loading", "medmo_recipes.training.monitoring"),
    "medmo_recipes.evaluation": ("medmo_core",),
    "medmo_recipes.pages": (
        *SETTINGS,
        "medmo_recipes.evaluation",
        "medmo_recipes.reinforcement",
        "medmo_recipes.training.monitoring",
    ),
    "medmo_recipes.commands": ("medmo_core", "medmo_recipes"),
    "medmo_recipes.cli": ("medmo_core",),
    "medmo_recipes": (*TRAINING, "medmo_recipes.training", "medmo_recipes.reinforcement", "medmo_recipes.pages"),
    "benchmarks.suite": ("medmo_core", "medmo_kernels", "medmo_recipes.settings"),
    "benchmarks.peers": ("medmo_core", "medmo_kernels"),
    "benchmarks.studies": ("medmo_core", "medmo_recipes"),
    "benchmarks.studies.box_rewards": ("medmo_core", "medmo_kernels", "medmo_recipes"),
    "benchmarks.studies.quickstart_runs": (
        "benchmarks.report.markdown",
        "benchmarks.report.page_section",
        "benchmarks.suite",
        "medmo_core",
        "medmo_recipes",
    ),
    "benchmarks.studies.quickstart_levers": (
        "benchmarks.report.markdown",
        "benchmarks.report.page_section",
        "medmo_core",
        "medmo_recipes",
    ),
    "benchmarks.report": (
        "benchmarks.suite",
        "benchmarks.studies",
        "medmo_core",
        "medmo_kernels",
        "medmo_recipes.settings",
    ),
    "benchmarks.modules": ("benchmarks.suite", "benchmarks.peers", "medmo_core", "medmo_kernels", "medmo_recipes"),
    "benchmarks.recipes": (
        "benchmarks.suite",
        "benchmarks.peers",
        "benchmarks.modules",
        "medmo_core",
        "medmo_recipes",
    ),
    "benchmarks": ("benchmarks", "medmo_core", "medmo_kernels", "medmo_recipes"),
    "tools.house": (),
    "tools.embedded_set": ("medmo_core.datasets",),
    "tools.demo_checkpoint": ("benchmarks.report.markdown", "benchmarks.suite", "medmo_core", "medmo_recipes"),
    "tools.mutants": (),
    "tools.compile_kernels": ("medmo_kernels",),
    "tools": ("tools", "benchmarks.report", "benchmarks.suite", "medmo_core", "medmo_kernels", "medmo_recipes"),
}
GROUND = ("choices", "durable", "errors", "moved", "nearest", "notice", "optional", "printable")
"""Files at the root of medmo_core that any file above the kernels may import; of ours they import one another alone."""
FILES = module_files(ROOT)
GRAPH = graph_of(FILES)
LIBRARY_FILES = [(name, source) for name, source in FILES.items() if source.part in LIBRARY]


def imported_names(module: str, source: SourceFile) -> set[str]:
    """Return the absolute names of everything a file imports, at any depth of the file."""
    return {item.target for item in imports_of(module, source)}


def room_of(module: str) -> str:
    """Return the longest key of MAY_IMPORT that covers a module."""
    return max((key for key in MAY_IMPORT if covered(module, key)), key=len)


def covered(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violations(module: str, source: SourceFile) -> list[str]:
    """Return what a file imports of ours though its room may not."""
    room = room_of(module)
    ground = () if covered(module, "medmo_kernels") else tuple(f"medmo_core.{name}" for name in GROUND)
    allowed = (room, *MAY_IMPORT[room], *ground)
    ours = {name.split(".")[0] for name in FILES}
    names = [name for name in imported_names(module, source) if name.split(".")[0] in ours]
    return sorted(name for name in names if not any(covered(name, prefix) for prefix in allowed))


def planted(tmp_path: Path, text: str) -> SourceFile:
    """Return a file with this text that stands in medmo_core/data/records."""
    path = Path("medmo_core/data/records/planted.py")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    return SourceFile(tmp_path, path, "core")


@pytest.mark.parametrize("module", FILES)
def test_imports_keep_to_their_row(module: str) -> None:
    assert violations(module, FILES[module]) == []


def test_the_import_rule_catches_an_upward_import(tmp_path: Path) -> None:
    source = planted(tmp_path, "def load():\n    from medmo_core.models.medmo import MedMO\n")
    assert violations("medmo_core.data.records.planted", source) == ["medmo_core.models.medmo.MedMO"]


def test_every_folder_has_a_row() -> None:
    folders = {module.rpartition(".")[0] for module, source in FILES.items() if not is_package(source)}
    rooms = {folder for folder in folders if not covered(folder, "medmo_kernels")}
    parents = {"medmo_recipes.training"}  # holds folders alone
    assert sorted(folder for folder in rooms - parents if folder not in MAY_IMPORT) == []
    assert sorted(key for key in MAY_IMPORT if not any(covered(module, key) for module in FILES)) == []


def test_no_file_imports_itself_through_others() -> None:
    assert circles(GRAPH) == []


def test_no_room_imports_itself_through_others() -> None:
    """Rooms as in MAY_IMPORT; files that a row names alone are rooms of their own."""
    named = {name for allowed in MAY_IMPORT.values() for name in allowed if name in FILES}

    def room(module: str) -> str:
        return module if module in named else room_of(module)

    rooms: dict[str, set[str]] = {room(module): set() for module in FILES}
    for module, targets in GRAPH.items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    assert circles(rooms) == []


def test_the_circle_rule_catches_one(tmp_path: Path) -> None:
    source = planted(tmp_path, "def late():\n    from medmo_core.data.sources import mixture\n")
    name = "medmo_core.data.records.sample"
    assert circles(graph_of({**FILES, name: source})) != []


def test_the_longest_chain_of_imports_does_not_grow() -> None:
    library = {module: GRAPH[module] & {name for name, _ in LIBRARY_FILES} for module, _ in LIBRARY_FILES}
    chain = longest_chain(library)
    print(f"{len(chain)} files:", " -> ".join(chain))
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_no_folder_is_crowded() -> None:
    counts = Counter(path.parent for path in python_files(ROOT) if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): number for folder, number in counts.items() if number > MAX_FILES}
    assert crowded == {}


def test_nothing_changes_the_path_of_imports() -> None:
    assert path_changes(of_parts(sources(ROOT), (*SHIPPED, "tests"))) == []


def test_kernel_rooms_do_not_import_one_another() -> None:
    """A room may be built of another's launcher and reference only when its docstring says so."""
    rooms = {name for name, source in FILES.items() if is_package(source) and name.count(".") == 1}
    rooms = {name for name in rooms if covered(name, "medmo_kernels")}
    for module, source in FILES.items():
        room = next((room for room in rooms if covered(module, room)), None)
        if room is None:
            continue
        docstring = ast.get_docstring(FILES[room].tree) or ""
        used = {other for other in rooms - {room} for name in imported_names(module, source) if covered(name, other)}
        unsaid = [name for name in used if f"`{name.partition('.')[2]}`" not in docstring]
        assert unsaid == [], f"{source.name} uses {unsaid}; the docstring of its room does not say so"


def test_stages_do_not_import_one_another() -> None:
    stages = {f"medmo_recipes.{stage}" for stage in ("align", "instruct", "reinforce")}
    assert [stage for stage in stages if GRAPH[stage] & stages] == []


FOREIGN_TRAINERS = ("transformers", "trl", "accelerate", "deepspeed", "lightning", "pytorch_lightning", "verl", "peft")


def test_the_library_imports_no_foreign_trainer_or_model() -> None:
    for module, source in LIBRARY_FILES:
        assert not [n for n in imported_names(module, source) if n.split(".")[0] in FOREIGN_TRAINERS], module


def test_triton_is_imported_only_where_kernels_live() -> None:
    for module, source in LIBRARY_FILES:
        if not source.path.name.startswith("triton_kernel"):
            assert not [n for n in imported_names(module, source) if n.split(".")[0] == "triton"], module


def test_the_kernels_folder_is_not_a_package() -> None:
    """`kernels` is also the name of a package that transformers probes for; ours must stay a plain folder."""
    assert not (ROOT / "kernels/__init__.py").exists()


def test_source_roots_are_imported_by_their_installed_names() -> None:
    everything = module_files(ROOT, (*SHIPPED, "tests"))
    names = {
        (module, name.split(".")[0]) for module, source in everything.items() for name in imported_names(module, source)
    }
    assert sorted(module for module, top in names if top in ("kernels", "recipes")) == []


def test_no_dustbin_names() -> None:
    banned = {"utils", "common", "helpers", "triton", "kernels", "misc"}
    assert [module for module, source in FILES.items() if source.path.stem in banned] == []


def test_no_file_past_the_ceiling() -> None:
    lengths = {source.name: len(source.lines) for source in sources(ROOT)}
    assert {name: number for name, number in lengths.items() if number > MAX_LINES} == {}


def test_public_functions_and_classes_are_documented() -> None:
    missing = []
    for module, source in LIBRARY_FILES:
        if source.tree.body and not ast.get_docstring(source.tree):
            missing.append(module)
        for node in source.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(f"{module}.{node.name}")
    assert missing == []


def test_docstrings_keep_the_style() -> None:
    """The rules, and how to list what breaks them, stand in tools/house/docstrings.py."""
    broken = [f"{o.file}:{o.line}: {o.rule}" for o in offences(of_parts(sources(ROOT), SHIPPED))]
    assert broken == []


def test_no_environment_variable_configures_anything() -> None:
    """The one debug switch is MEDMO_KERNELS; torchrun's variables are read where processes are launched and joined."""
    readers = {module for module, source in LIBRARY_FILES if re.search(r"os\.environ|getenv", source.text)}
    torchrun = {f"medmo_recipes.training.distributed.{name}" for name in ("world", "torchrun")}
    assert {module for module in readers if not covered(module, "medmo_kernels.runtime")} <= torchrun


def test_every_invariant_has_its_file_and_a_violation_that_it_notices() -> None:
    wanted = set(range(1, 31))
    files = sorted((ROOT / "tests/invariants").rglob("test_*.py"))
    numbers = [int(path.name.split("_")[1]) for path in files]
    assert len(numbers) == len(set(numbers)) and set(numbers) == wanted, sorted(wanted ^ set(numbers))
    blind = [path.name for path in files if not re.search(r"def test_\w*noticed", path.read_text(encoding="utf-8"))]
    assert blind == []
