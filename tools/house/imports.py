"""Graph of imports, file by file: circles, arrows up, and the longest chain.

An arrow leads from a file to the file that defines what it imports. `from medmo_core.boxes import Boxes` leads to the
file of a module `boxes`, or, where `boxes` is a package, to the file that its `__init__` takes `Boxes` from; the
`__init__` gets the arrow itself only where it defines the name or is imported whole. Imports at any depth count: those
inside functions and those under TYPE_CHECKING too. Modules named by a string (`importlib.import_module`) do not.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .sources import FOLDERS, SHIPPED, Function, SourceFile, of_parts, sources

PACKAGES = {
    "kernels": "medmo_kernels",
    "core": "medmo_core",
    "recipes": "medmo_recipes",
    "benchmarks": "benchmarks",
    "tools": "tools",
    "tests": "tests",
}
"""Part of the project -> name that its modules are imported below."""
FLOORS = {"kernels": 0, "core": 1, "recipes": 2, "benchmarks": 3, "tools": 3}
"""Part of the project -> its height; an import may lead down or stay on its floor."""
Graph = Mapping[str, set[str]]
"""Module -> modules that it imports, all of them keys."""


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        module: absolute dotted name of the module that stands after `from`, or after `import`.
        name: imported name; empty for `import module`.
        line: line of the statement, from 1.
        is_lazy: whether the statement stands inside a function.
        is_typing: whether the statement stands under `if TYPE_CHECKING`.
    """

    module: str
    name: str
    line: int
    is_lazy: bool
    is_typing: bool

    @property
    def target(self) -> str:
        """Dotted name of what is imported."""
        return f"{self.module}.{self.name}" if self.name else self.module


def is_package(source: SourceFile) -> bool:
    """Return whether a file is the `__init__` of a package."""
    return source.path.name == "__init__.py"


def module_name(source: SourceFile) -> str:
    """Return the dotted name that a file is imported by; a package has the name of its folder."""
    parts = source.path.relative_to(FOLDERS[source.part]).with_suffix("").parts
    names = [PACKAGES[source.part], *(parts[:-1] if is_package(source) else parts)]
    return ".".join(name for name in names if name)


def modules_of(files: Iterable[SourceFile]) -> dict[str, SourceFile]:
    """Return files by the names that they are imported by."""
    return {module_name(source): source for source in files}


def module_files(root: Path, parts: Iterable[str] = SHIPPED) -> dict[str, SourceFile]:
    """Return the files of a checkout by the names that they are imported by.

    Args:
        root: folder of the checkout.
        parts: parts of the project, keys of `PACKAGES`.
    """
    return modules_of(of_parts(sources(root), parts))


def _absolute(module: str, package: bool, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module that a `from` statement names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + (1 if package else 0)]
    return ".".join([*base, node.module] if node.module else base)


def _is_typing(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy, typing
        elif not isinstance(child, ast.expr):
            inside = lazy or isinstance(child, Function)
            yield from _walk(child, inside, typing or (isinstance(child, ast.If) and _is_typing(child)))


@cache
def _statements(source: SourceFile) -> list[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Return the import statements of a file: whether each is lazy, whether it is for types only."""
    return list(_walk(source.tree, False, False))


def imports_of(module: str, source: SourceFile) -> list[Import]:
    """Return what a file imports, at any depth, one item a name.

    Args:
        module: dotted name of the file, from which its relative imports count.
        source: the file.
    """
    found = []
    for node, lazy, typing in _statements(source):
        for alias in node.names:
            if isinstance(node, ast.Import):
                found.append(Import(alias.name, "", node.lineno, lazy, typing))
            else:
                base = _absolute(module, is_package(source), node)
                found.append(Import(base, alias.name, node.lineno, lazy, typing))
    return found


def _handed_on(module: str, source: SourceFile) -> dict[str, Import]:
    """Return what a package takes from elsewhere, by the name that it gives it."""
    taken = {}
    for node, lazy, typing in _statements(source):
        if isinstance(node, ast.ImportFrom) and not lazy:
            base = _absolute(module, True, node)
            for alias in node.names:
                taken[alias.asname or alias.name] = Import(base, alias.name, node.lineno, lazy, typing)
    return taken


def graph_of(files: Mapping[str, SourceFile]) -> dict[str, set[str]]:
    """Return the arrows between files, each file's own left out.

    Args:
        files: files by the names that they are imported by (`module_files`); imports of anything else are left out.
    """
    handed_on = {module: _handed_on(module, source) for module, source in files.items() if is_package(source)}

    def defined_in(module: str, name: str, seen: frozenset[str] = frozenset()) -> str | None:
        target = f"{module}.{name}" if name else module
        if name and target in files:
            return target
        if name and target not in seen and name in handed_on.get(module, {}):
            taken = handed_on[module][name]
            return defined_in(taken.module, taken.name, seen | {target}) or module
        return module if module in files else None

    arrows: dict[str, set[str]] = {}
    for module, source in files.items():
        targets = {defined_in(item.module, item.name) for item in imports_of(module, source)}
        arrows[module] = {target for target in targets if target is not None and target != module}
    return arrows


def components(graph: Graph) -> list[tuple[str, ...]]:
    """Return the strongly connected components, those that are imported before those that import them (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            start = stack.index(node)
            found.append(tuple(sorted(stack[start:])))
            del stack[start:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the groups of files that import one another, directly or through others, in the order of their names."""
    return sorted(component for component in components(graph) if len(component) > 1)


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports from the top down.

    A circle is one stop of the chain, shown by the first of its names: within one there is no end of steps.
    """
    ordered = components(graph)
    home = {node: component for component in ordered for node in component}
    best: dict[tuple[str, ...], list[str]] = {}
    for component in ordered:
        below = {home[target] for node in component for target in graph[node]} - {component}
        longest = max((best[other] for other in below), key=lambda chain: (len(chain), chain), default=[])
        best[component] = [component[0], *longest]
    return max(best.values(), key=lambda chain: (len(chain), chain), default=[])


def parts_graph(files: Mapping[str, SourceFile], graph: Graph) -> dict[str, set[str]]:
    """Return which part of the project imports which others.

    Args:
        files: files by the names that they are imported by.
        graph: their arrows.
    """
    arrows: dict[str, set[str]] = {source.part: set() for source in files.values()}
    for module, targets in graph.items():
        arrows[files[module].part] |= {files[target].part for target in targets} - {files[module].part}
    return arrows


def arrows_up(graph: Graph, floor: Callable[[str], int]) -> list[tuple[str, str]]:
    """Return the imports that lead to a higher floor, in order.

    Args:
        graph: modules and what they import.
        floor: height of a module.
    """
    return sorted((node, target) for node in graph for target in graph[node] if floor(target) > floor(node))
