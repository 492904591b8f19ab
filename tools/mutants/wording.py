"""A comparison of two functions that leaves the wording of messages aside."""

import ast
import textwrap

PRINTERS = frozenset({"print", "warn", "say", "notice", "info", "warning", "add_note"})
"""Names of calls whose text is for people."""


def differ_in_wording_alone(one: str, other: str) -> bool:
    """Whether two sources of a function are the same but for the text of errors and notices."""
    first, second = (ast.dump(_Wordless().visit(ast.parse(textwrap.dedent(text)))) for text in (one, other))
    return first == second


class _Wordless(ast.NodeTransformer):
    """Replacement of every text inside a `raise` or a call that prints."""

    def __init__(self) -> None:
        self._is_silent = False

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._silenced(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return self._silenced(node) if name in PRINTERS else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if self._is_silent and isinstance(node.value, str) else node

    def _silenced(self, node: ast.AST) -> ast.AST:
        before, self._is_silent = self._is_silent, True
        self.generic_visit(node)
        self._is_silent = before
        return node
