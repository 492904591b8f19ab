"""Lengths of files, functions and classes in lines, and how many files lie in one folder.

A definition runs from its `def` or `class` line to its last; decorators are not counted. Blank lines and comments are.
"""

import ast
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .habits import is_jit
from .sources import Definition, Function, SourceFile, docstring_node


@dataclass(frozen=True, order=True)
class Length:
    """Length of something with a name.

    Attributes:
        lines: lines, docstring included.
        bare: lines without the docstring.
        name: file, and the name in it.
        is_kernel: whether Triton compiles it.
    """

    lines: int
    bare: int
    name: str
    is_kernel: bool = False


def percentile(values: Iterable[int], share: float) -> int:
    """Return the smallest value that at least a share of all values does not exceed; 0 where there is none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0


def length_of(source: SourceFile, node: Definition) -> Length:
    """Return the length of a function or class."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    docstring = docstring_node(node)
    spent = (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1 if docstring else 0
    kernel = isinstance(node, Function) and is_jit(node)
    return Length(lines, lines - spent, f"{source.name}: {node.name}", kernel)


def file_lengths(files: Iterable[SourceFile]) -> list[Length]:
    """Return the lengths of files; their docstrings are not taken off."""
    return [Length(len(source.lines), len(source.lines), source.name) for source in files]


def function_lengths(files: Iterable[SourceFile]) -> list[Length]:
    """Return the lengths of all functions and methods, nested ones included."""
    return [length_of(source, node) for source in files for node in source.functions]


def class_lengths(files: Iterable[SourceFile]) -> list[Length]:
    """Return the lengths of all classes."""
    return [length_of(source, node) for source in files for node in source.nodes if isinstance(node, ast.ClassDef)]


def longest(lengths: Sequence[Length], *, bare: bool = False) -> Length:
    """Return the longest of some things.

    Args:
        lengths: lengths to choose from; none give a length of 0 without a name.
        bare: compare them without their docstrings.
    """
    return max(lengths, key=lambda item: item.bare if bare else item.lines, default=Length(0, 0, "none"))


def folder_sizes(files: Iterable[SourceFile]) -> Counter[str]:
    """Return the number of Python files that lie directly in each folder, `__init__` not counted."""
    plain = (source for source in files if source.path.name != "__init__.py")
    return Counter(source.path.parent.as_posix() for source in plain)
