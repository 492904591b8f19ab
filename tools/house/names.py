"""Names of the library that nothing uses, and public ones that only tests use.

Pages for users (README.md, docs/) count as users of the names in their code. A public name that three files or more
define (`EXAMPLES` of a reward) is a convention for whoever walks those files, not a loose end.

A name counts as used where it is read, called, looked up as an attribute or stands alone in a string ("MedMO", an entry
point "medmo_recipes.cli:main", a quoted annotation), anywhere in the checkout outside its own definition. Handing it
on from an `__init__`, importing it, and listing it in `__all__` are no use. Names are compared as words, not resolved:
two things of one name count as used when either is, so that the figure errs on the low side.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .sources import LIBRARY, Definition, SourceFile, of_parts

WORDS = re.compile(r"[A-Za-z_]\w*([.:\[|, \]]+[A-Za-z_]\w*)*\]*")
WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Defined:
    """A name and where it is defined.

    Attributes:
        source: file of the definition.
        name: the name itself.
        first: first line of the definition, decorators included.
        last: last line of the definition.
        is_member: whether a class holds the definition; members of private classes and dunders are left out.
    """

    source: SourceFile
    name: str
    first: int
    last: int
    is_member: bool

    @property
    def is_public(self) -> bool:
        """Whether the name does not begin with an underscore."""
        return not self.name.startswith("_")

    def __str__(self) -> str:
        return f"{self.source.name}:{self.first}: {self.name}"


CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
"""Code on a page of Markdown."""
CONVENTION = 3
"""Files that define a name from which it is a convention."""
Uses = dict[str, list[tuple[SourceFile, int]]]
"""Name -> files and lines that use it."""


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _first_line(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _constants(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                yield name.id


def _of_body(source: SourceFile, body: Iterable[ast.stmt], member: bool) -> Iterator[Defined]:
    for node in body:
        if isinstance(node, Definition) and not _is_dunder(node.name):
            yield Defined(source, node.name, _first_line(node), node.end_lineno or node.lineno, member)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (item for item in _of_body(source, node.body, True) if item.is_public)
        if not member:
            for name in _constants(node):
                if not _is_dunder(name):
                    yield Defined(source, name, node.lineno, node.end_lineno or node.lineno, False)
        for inner in (getattr(node, "body", []), getattr(node, "orelse", [])) if isinstance(node, ast.If) else ():
            yield from _of_body(source, inner, member)


def defined(files: Iterable[SourceFile]) -> list[Defined]:
    """Return the functions, classes and constants that files define at their top, and public members of their classes.

    Fields of a class are not listed: who reads one cannot be seen without its type.
    """
    return [item for source in files for item in _of_body(source, source.tree.body, False)]


def _listed(source: SourceFile) -> set[int]:
    """Return the ids of the strings in `__all__`."""
    lists = [node for node in source.nodes if "__all__" in (_constants(node) if isinstance(node, ast.stmt) else ())]
    return {id(part) for node in lists for part in ast.walk(node)}


def _words_of(node: ast.AST, package: bool) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and WORDS.fullmatch(node.value):
        yield from WORD.findall(node.value)
    elif isinstance(node, ast.ImportFrom) and not package:
        yield from (alias.name for alias in node.names if alias.asname)


def uses(files: Iterable[SourceFile]) -> Uses:
    """Return every use of every name in some files."""
    found: Uses = defaultdict(list)
    for source in files:
        left_out = _listed(source)
        package = source.path.name == "__init__.py"
        for node in source.nodes:
            if id(node) not in left_out:
                for word in _words_of(node, package):
                    found[word].append((source, getattr(node, "lineno", 0)))
    return found


def users(item: Defined, found: Uses) -> set[str]:
    """Return the parts of the project that use a name outside its definition."""
    return {
        source.part
        for source, line in found.get(item.name, ())
        if source is not item.source or not item.first <= line <= item.last
    }


def page_words(root: Path) -> set[str]:
    """Return the words in the code of the pages that a checkout has for its users."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    texts = (page.read_text(encoding="utf-8") for page in pages if page.exists())
    return {word for text in texts for code in CODE.findall(text) for word in WORD.findall(code)}


def unused(root: Path, files: Iterable[SourceFile]) -> tuple[list[Defined], list[Defined]]:
    """Return the names of the library that nothing uses, and the public ones that only tests use.

    Args:
        root: folder of the checkout.
        files: all files of the checkout.
    """
    files = list(files)
    found, offered = uses(files), page_words(root)
    items = defined(of_parts(files, LIBRARY))
    homes = Counter(name for name, _ in {(item.name, item.source) for item in items})
    nowhere, in_tests = [], []
    for item in items:
        parts = users(item, found)
        if not parts and not item.is_member and item.name not in offered:
            nowhere.append(item)
        elif parts == {"tests"} and item.is_public and item.name not in offered and homes[item.name] < CONVENTION:
            in_tests.append(item)
    return nowhere, in_tests
