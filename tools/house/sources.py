"""Python files of a checkout, by the part of the project that they belong to, each read and parsed once."""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDERS = {
    "kernels": "kernels/medmo_kernels",
    "core": "medmo_core",
    "recipes": "recipes",
    "benchmarks": "benchmarks",
    "tools": "tools",
    "tests": "tests",
}
"""Part of the project -> its folder, seen from the root."""
LIBRARY = ("kernels", "core", "recipes")
SHIPPED = (*LIBRARY, "benchmarks", "tools")
"""Everything but the tests."""
OTHER = "other"
"""Part of Python files that stand at the root or in the folders of `OTHER_FOLDERS`: they use names, nothing more."""
OTHER_FOLDERS = ("examples", "docs")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Text:
    """A comment or string literal as it is spelled in a file."""

    line: int
    """Line of its first character, from 1."""
    column: int
    text: str
    is_comment: bool


@dataclass(frozen=True, eq=False)
class SourceFile:
    """A Python file.

    Attributes:
        root: folder of the checkout.
        path: the file, seen from the root.
        part: part of the project, a key of `FOLDERS` or `OTHER`.
    """

    root: Path
    path: Path
    part: str

    @property
    def name(self) -> str:
        """Path from the root with forward slashes, as messages show it."""
        return self.path.as_posix()

    @cached_property
    def text(self) -> str:
        """Content of the file."""
        return (self.root / self.path).read_text(encoding="utf-8")

    @cached_property
    def lines(self) -> list[str]:
        """Lines of the file without their ends."""
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        """Syntax tree of the file."""
        return ast.parse(self.text, filename=self.name)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def definitions(self) -> list[Definition]:
        """Functions, methods and classes of the file, nested ones included."""
        return [node for node in self.nodes if isinstance(node, Definition)]

    @cached_property
    def functions(self) -> list[Function]:
        """Functions and methods of the file, nested ones included; lambdas are expressions."""
        return [node for node in self.definitions if isinstance(node, Function)]

    @cached_property
    def texts(self) -> list[Text]:
        """Comments and string literals, in order."""
        found = []
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                found.append(Text(*token.start, token.string, True))
            elif token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
                found.append(Text(*token.start, token.string, False))
        return found

    @property
    def comments(self) -> list[Text]:
        """Comments, in order."""
        return [text for text in self.texts if text.is_comment]


def python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files below a folder, without those of hidden, cached or built folders."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part in ("__pycache__", "build") for part in parts):
            yield path


def sources(root: Path) -> list[SourceFile]:
    """Return the Python files of a checkout; a missing folder has none."""
    found = [
        SourceFile(root, path.relative_to(root), part)
        for part, folder in FOLDERS.items()
        for path in python_files(root / folder)
    ]
    others = [*sorted(root.glob("*.py")), *(path for name in OTHER_FOLDERS for path in python_files(root / name))]
    return found + [SourceFile(root, path.relative_to(root), OTHER) for path in others]


def of_parts(files: Iterable[SourceFile], parts: Iterable[str]) -> list[SourceFile]:
    """Return the files that belong to some parts of the project."""
    wanted = set(parts)
    return [source for source in files if source.part in wanted]


def docstring_node(node: ast.AST) -> ast.Constant | None:
    """Return the docstring of a module, class or function as it stands in the tree."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
        return None
    value = body[0].value
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
