"""Comments that should not be there (code, banners, notes to do) and comments that switch a checker off."""

import ast
import re
from collections.abc import Iterable

from .sources import SourceFile, Text

NOTE = re.compile(r"\b(TODO|FIXME|XXX)\b")
BANNER = re.compile(r"#\s*([-=*~#+_─━═])\1{2,}")
"""A comment that begins with a rule: `# --- shapes ---`, `# ======`."""
MAYBE_BANNER = re.compile(rf"^\s*{BANNER.pattern}", re.MULTILINE)
"""The same in the text of a whole file, where it may also stand in a string."""
TYPE_IGNORE = re.compile(r"(type|pyright):\s*ignore")
NOQA = re.compile(r"#\s*noqa\b", re.IGNORECASE)
FMT_SKIP = re.compile(r"#\s*fmt:\s*(skip|off)\b")
DIRECTIVE = re.compile(r"#\s*(type|pyright|fmt|noqa|ruff|isort|mypy|pragma)\b|#!")
STATEMENTS = (
    ast.Assign,
    ast.AugAssign,
    ast.Assert,
    ast.AsyncFor,
    ast.AsyncFunctionDef,
    ast.AsyncWith,
    ast.ClassDef,
    ast.Delete,
    ast.For,
    ast.FunctionDef,
    ast.If,
    ast.Import,
    ast.ImportFrom,
    ast.Raise,
    ast.Return,
    ast.Try,
    ast.While,
    ast.With,
)
CALLS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)


def is_code(text: str) -> bool:
    """Return whether a comment is a statement that somebody switched off.

    A name, a tuple of names, a shape or a formula without an equals sign is prose, and so is `word: word`, which Python
    takes for an annotation. The opening line of a block counts with its colon.

    Args:
        text: comment with its sign.
    """
    words = text.lstrip("#").strip()
    if not words or DIRECTIVE.match(text):
        return False
    for code in (words, f"{words} pass") if words.endswith(":") else (words,):
        try:
            body = ast.parse(code).body
        except (SyntaxError, ValueError):
            continue
        return any(_is_statement(node) for node in body)
    return False


def _is_statement(node: ast.stmt) -> bool:
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    if isinstance(node, ast.Expr):
        return isinstance(node.value, CALLS)
    return isinstance(node, STATEMENTS)


def code_comments(source: SourceFile) -> list[Text]:
    """Return the comments of a file that are code and have their line to themselves."""
    alone = [text for text in source.comments if not source.lines[text.line - 1][: text.column].strip()]
    return [text for text in alone if is_code(text.text)]


def count(files: Iterable[SourceFile], pattern: re.Pattern[str]) -> int:
    """Return the number of comments in which a pattern is found."""
    return sum(bool(pattern.search(text.text)) for source in files for text in source.comments)


def banners(files: Iterable[SourceFile]) -> list[str]:
    """Return file and line of every comment that begins with a rule."""
    likely = [source for source in files if MAYBE_BANNER.search(source.text)]  # to read every token of tests is slow
    return [f"{source.name}:{text.line}" for source in likely for text in source.comments if BANNER.match(text.text)]
