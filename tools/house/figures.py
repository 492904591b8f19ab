"""All figures of a checkout, in the order of the table."""

import ast
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import comments, docstrings, habits, imports, lengths, names
from .sources import FOLDERS, LIBRARY, SHIPPED, SourceFile, of_parts, sources

LESS, MORE = "less", "more"
MAX_FUNCTION = 60
MAX_KERNEL = 120
"""Lines of a Triton kernel without its docstring; everything inlined reads better in one piece."""
MAX_FOLDER = 16


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        key: name in the JSON file, by which two checkouts are compared.
        label: name in the table.
        value: number to compare.
        better: direction in which the number improves, "less" or "more"; empty: neither is better.
        note: what stands behind the number, such as the name of the longest file; not compared.
        digits: digits behind the point.
    """

    key: str
    label: str
    value: float
    better: str = ""
    note: str = ""
    digits: int = 0

    @property
    def shown(self) -> str:
        """Number with its digits and thousands apart."""
        return f"{self.value:,.{self.digits}f}"


def _listed(items: Iterable[object]) -> str:
    return "; ".join(str(item) for item in items)


def size_figures(files: list[SourceFile]) -> Iterator[Figure]:
    """Yield the numbers of files and lines by part of the project."""
    for name, parts in {"library": LIBRARY, **{part: (part,) for part in FOLDERS}}.items():
        chosen = of_parts(files, parts)
        yield Figure(f"files.{name}", f"files, {name}", len(chosen))
        yield Figure(f"lines.{name}", f"lines, {name}", sum(len(source.lines) for source in chosen))


def length_figures(files: list[SourceFile]) -> Iterator[Figure]:
    """Yield how long files, functions and classes of the library are."""
    library = of_parts(files, LIBRARY)
    by_file = lengths.file_lengths(library)
    lines = [item.lines for item in by_file]
    yield Figure("file.median", "median file (lines)", statistics.median(lines or [0]), LESS)
    yield Figure("file.p90", "90th percentile file", lengths.percentile(lines, 0.9), LESS)
    largest = lengths.longest(by_file)
    yield Figure("file.largest", "largest file", largest.lines, LESS, largest.name)
    by_function = lengths.function_lengths(library)
    longest, bare = lengths.longest(by_function), lengths.longest(by_function, bare=True)
    spent = [item.lines for item in by_function]
    yield Figure("function.longest", "longest function", longest.lines, LESS, longest.name)
    yield Figure("function.longest_bare", "longest function without docstring", bare.bare, LESS, bare.name)
    over = sorted((item for item in by_function if item.lines > MAX_FUNCTION), reverse=True)
    bare_over = [item for item in over if item.bare > (MAX_KERNEL if item.is_kernel else MAX_FUNCTION)]
    yield Figure("function.over", f"functions over {MAX_FUNCTION} lines", len(over), LESS)
    note = _listed(f"{item.name} {item.bare}" for item in bare_over)
    yield Figure(
        "function.over_bare", f"the same without docstring (kernels: over {MAX_KERNEL})", len(bare_over), LESS, note
    )
    yield Figure("function.median", "median function", statistics.median(spent or [0]), LESS)
    yield Figure("function.p99", "99th percentile function", lengths.percentile(spent, 0.99), LESS)
    largest = lengths.longest(lengths.class_lengths(library))
    yield Figure("class.longest", "longest class", largest.lines, LESS, largest.name)


def habit_figures(root: Path, files: list[SourceFile]) -> Iterator[Figure]:
    """Yield annotations, docstrings, errors, dead code and ops of the library."""
    library = of_parts(files, LIBRARY)
    arguments, returns = habits.annotated_arguments(library), habits.annotated_returns(library)
    note = "Triton kernels and lambdas not counted"
    yield Figure("typed.arguments", f"annotated arguments of {arguments.whole:,} (%)", arguments.percent, MORE, note, 1)
    yield Figure("typed.returns", f"annotated returns of {returns.whole:,} (%)", returns.percent, MORE, note, 1)
    for name, parts in {"library": LIBRARY, **{part: (part,) for part in LIBRARY}}.items():
        documented = habits.public_docstrings(of_parts(files, parts))
        yield Figure(f"documented.{name}", f"public docstrings, {name} (%)", documented.percent, MORE, "", 1)
    yield Figure("raises", "raise statements", habits.number_of(library, ast.Raise))
    yield Figure("asserts", "assert statements", habits.number_of(library, ast.Assert), LESS)
    code = [f"{source.name}:{text.line}" for source in library for text in comments.code_comments(source)]
    per_thousand = 1000 * len(code) / max(sum(len(source.lines) for source in library), 1)
    yield Figure("commented_out", "commented-out lines per 1,000", per_thousand, LESS, _listed(code), 1)
    yield Figure("notes", "TODO, FIXME, XXX", comments.count(library, comments.NOTE), LESS)
    nowhere, in_tests = names.unused(root, files)
    yield Figure("names.nowhere", "names used nowhere", len(nowhere), LESS, _listed(nowhere))
    yield Figure("names.tests", "public names used only by tests", len(in_tests), LESS, _listed(in_tests))
    yield Figure("triton", "Triton kernels", habits.jit_functions(library))
    yield Figure("autograd", "autograd Functions", habits.autograd_functions(library))
    yield Figure("ops", "registered ops", habits.registered_ops(library), MORE)


def hatch_figures(root: Path, files: list[SourceFile]) -> Iterator[Figure]:
    """Yield banners, what switches a checker off, lazy imports, and the share of lines that pyright checks."""
    library, shipped = of_parts(files, LIBRARY), of_parts(files, SHIPPED)
    banners = comments.banners(of_parts(files, (*SHIPPED, "tests")))
    yield Figure("banners", "banner comments, everywhere", len(banners), LESS)
    yield Figure(
        "type_ignores", "type: ignore and pyright: ignore", comments.count(library, comments.TYPE_IGNORE), LESS
    )
    yield Figure("noqa", "noqa", comments.count(library, comments.NOQA), LESS)
    skips = comments.count(library, comments.FMT_SKIP)
    in_kernels = comments.count(of_parts(files, ["kernels"]), comments.FMT_SKIP)
    yield Figure("fmt_skip", "fmt: skip", skips, LESS, f"{in_kernels} in kernels")
    lazy, door = habits.lazy_imports(imports.modules_of(library))
    yield Figure("lazy", "imports inside functions", lazy, LESS, f"{door} of files that need Triton")
    checked, of_library = habits.checked_lines(root, shipped), habits.checked_lines(root, library)
    note = f"{of_library.percent:.1f} of the library"
    yield Figure("checked", "lines that pyright checks (%)", checked.percent, MORE, note, 1)


def import_figures(files: list[SourceFile]) -> Iterator[Figure]:
    """Yield circles, arrows up and chains of imports."""
    shipped = imports.modules_of(of_parts(files, SHIPPED))
    graph = imports.graph_of(shipped)
    circles = imports.circles(graph)
    yield Figure("circles", "circles of files", len(circles), LESS, _listed(" ↔ ".join(circle) for circle in circles))
    rings = imports.circles(imports.parts_graph(shipped, graph))
    yield Figure("circles.parts", "circles of parts", len(rings), LESS, _listed(" ↔ ".join(ring) for ring in rings))
    changes = habits.path_changes(of_parts(files, SHIPPED))
    yield Figure("sys_path", "changes of sys.path", len(changes), LESS, _listed(changes))
    up = imports.arrows_up(graph, lambda module: imports.FLOORS[shipped[module].part])
    yield Figure("arrows_up", "imports of a higher floor", len(up), LESS, _listed(" → ".join(arrow) for arrow in up))
    for name, parts in (("library", LIBRARY), ("recipes", ("recipes",)), ("everything", SHIPPED)):
        chain = imports.longest_chain(imports.graph_of(imports.modules_of(of_parts(files, parts))))
        label = f"longest chain of imports, {name}"
        yield Figure(f"chain.{name}", label, len(chain), LESS, " → ".join(chain))


def folder_figures(files: list[SourceFile]) -> Iterator[Figure]:
    """Yield the fullest folder and the number of folders that hold too many files."""
    sizes = lengths.folder_sizes(of_parts(files, (*SHIPPED, "tests"))).most_common()
    shipped = lengths.folder_sizes(of_parts(files, SHIPPED)).most_common(1)
    name, size = shipped[0] if shipped else ("none", 0)
    yield Figure("folder.fullest", "most files in a folder", size, LESS, name)
    crowded = [f"{folder} {count}" for folder, count in sizes if count > MAX_FOLDER]
    label = f"folders over {MAX_FOLDER} files, tests included"
    yield Figure("folder.crowded", label, len(crowded), LESS, _listed(crowded))


def docstring_figures(files: list[SourceFile]) -> Iterator[Figure]:
    """Yield the offences against the style of docstrings, by rule (`--list docstrings` shows where)."""
    shipped = of_parts(files, SHIPPED)
    for rule, count in docstrings.docstring_figures(docstrings.offences(shipped)).items():
        yield Figure(f"docstrings.{rule}", f"docstrings: {rule}", count, LESS)


def measure(root: Path) -> list[Figure]:
    """Return all figures of a checkout."""
    files = sources(root)
    return [
        *size_figures(files),
        *length_figures(files),
        *habit_figures(root, files),
        *hatch_figures(root, files),
        *import_figures(files),
        *folder_figures(files),
        *docstring_figures(files),
    ]
