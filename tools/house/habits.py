"""Habits of the code: annotations, docstrings, raises, lazy imports, kernels and ops."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .imports import Import, imports_of
from .sources import Definition, Function, SourceFile, docstring_node

REGISTERED = ("custom_op", "triton_op")


@dataclass(frozen=True)
class Share:
    """Part of a whole.

    Attributes:
        part: number that have it.
        whole: number that could have it.
    """

    part: int
    whole: int

    @property
    def percent(self) -> float:
        """The part in per cent; 100 of nothing."""
        return 100.0 * self.part / self.whole if self.whole else 100.0


def share(flags: Iterable[bool]) -> Share:
    """Return how many of some flags are on."""
    flags = list(flags)
    return Share(sum(flags), len(flags))


def is_jit(node: Function) -> bool:
    """Return whether a function is compiled by Triton."""
    names = (ast.unparse(getattr(decorator, "func", decorator)) for decorator in node.decorator_list)
    return any(name in ("triton.jit", "jit") for name in names)


def typed_functions(files: Iterable[SourceFile]) -> Iterator[Function]:
    """Yield the functions whose annotations count: all but Triton kernels, whose arguments Python has no types for.

    Lambdas cannot be annotated and are not counted.
    """
    return (node for source in files for node in source.functions if not is_jit(node))


def annotated_arguments(files: Iterable[SourceFile]) -> Share:
    """Return how many arguments are annotated; `self` and `cls` are not counted, `*args` and `**kwargs` are."""
    flags = []
    for node in typed_functions(files):
        spelled = node.args
        several = [argument for argument in (spelled.vararg, spelled.kwarg) if argument]
        for argument in (*spelled.posonlyargs, *spelled.args, *spelled.kwonlyargs, *several):
            if argument.arg not in ("self", "cls"):
                flags.append(argument.annotation is not None)
    return share(flags)


def annotated_returns(files: Iterable[SourceFile]) -> Share:
    """Return how many functions say what they return."""
    return share(node.returns is not None for node in typed_functions(files))


def _public(body: Iterable[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body)
        elif isinstance(node, ast.If | ast.Try):
            yield from _public(node.body)


def public_docstrings(files: Iterable[SourceFile]) -> Share:
    """Return how many public functions, classes and methods of public classes have a docstring."""
    return share(docstring_node(node) is not None for source in files for node in _public(source.tree.body))


def number_of(files: Iterable[SourceFile], kind: type[ast.AST]) -> int:
    """Return how many nodes of a kind files have."""
    return sum(isinstance(node, kind) for source in files for node in source.nodes)


def jit_functions(files: Iterable[SourceFile]) -> int:
    """Return the number of functions that Triton compiles."""
    return sum(is_jit(node) for source in files for node in source.functions)


def autograd_functions(files: Iterable[SourceFile]) -> int:
    """Return the number of classes derived from `torch.autograd.Function`."""
    classes = (node for source in files for node in source.nodes if isinstance(node, ast.ClassDef))
    return sum(any(ast.unparse(base).endswith("autograd.Function") for base in node.bases) for node in classes)


def registered_ops(files: Iterable[SourceFile]) -> int:
    """Return the number of ops registered by `custom_op`, `triton_op` or the schema that a library defines."""
    calls = (node for source in files for node in source.nodes if isinstance(node, ast.Call))
    return sum(_registers(node) for node in calls)


def _registers(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    schema = ast.unparse(node.args[0]) if node.args else ""
    return name in REGISTERED or (name == "define" and ("->" in schema or "::" in schema))


def lazy_imports(files: Mapping[str, SourceFile]) -> tuple[int, int]:
    """Return the number of import statements inside functions, and how many of them need Triton.

    A file needs Triton that imports it at its top, or a file of ours that does.

    Args:
        files: files by the names that they are imported by (`imports.module_files`).
    """
    found = {module: imports_of(module, source) for module, source in files.items()}
    eager = {
        module: [item for item in items if not (item.is_lazy or item.is_typing)] for module, items in found.items()
    }
    needs = {"triton"}
    while more := {module for module, items in eager.items() if _reaches(items, needs)} - needs:
        needs |= more
    lazy = {(module, item.line): item for module, items in found.items() for item in items if item.is_lazy}
    return len(lazy), sum(_reaches([item], needs) for item in lazy.values())


def _reaches(items: Iterable[Import], modules: set[str]) -> bool:
    return any(item.module in modules or item.target in modules for item in items)


def path_changes(files: Iterable[SourceFile]) -> list[str]:
    """Return file and line of every change of `sys.path`."""
    return [
        f"{source.name}:{node.lineno}"
        for source in files
        for node in source.nodes
        if isinstance(node, ast.Call) and re.fullmatch(r"sys\.path\.(insert|append|extend)", ast.unparse(node.func))
    ]


def checked_lines(root: Path, files: Iterable[SourceFile]) -> Share:
    """Return how many lines pyright checks, by `[tool.pyright] include` and `exclude` of pyproject.toml.

    Args:
        root: folder of the checkout; without a pyproject.toml, or without an include, everything is checked.
        files: files whose lines make the whole.
    """
    page = root / "pyproject.toml"
    settings = tomllib.loads(page.read_text(encoding="utf-8")) if page.exists() else {}
    pyright = settings.get("tool", {}).get("pyright", {})
    include, exclude = pyright.get("include", ["."]), pyright.get("exclude", [])
    files = list(files)
    checked = (s for s in files if _below(s, include) and not _below(s, exclude))
    return Share(sum(len(source.lines) for source in checked), sum(len(source.lines) for source in files))


def _below(source: SourceFile, folders: Iterable[str]) -> bool:
    plain = (folder.rstrip("/").removesuffix("/**").removeprefix("./") for folder in folders)
    return any(folder in ("", ".", "**") or source.path.is_relative_to(folder) for folder in plain)
