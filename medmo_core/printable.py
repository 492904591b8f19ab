"""Text of others (ids, labels, paths) as a terminal or a page of Markdown may show it: characters and nothing more."""

import re

MARKS = re.compile(r"[\\`*{}\[\]<>|#&~:@!]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.")
"""What begins something in Markdown: emphasis (an underscore inside a word does not), links, HTML, cells, addresses."""


def printable(text: str) -> str:
    """Return a text on one line with every character that would not simply be shown written as its escape.

    Control characters (of terminals, line ends, changes of reading direction), odd spaces and lone surrogates become
    what Python's `repr` writes for them, such as a backslash and `x1b`; letters of any script stay.

    Args:
        text: one line; of a text with several, each is passed alone.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with each as `printable` writes it."""
    return "\n".join(map(printable, text.split("\n")))


def markdown(text: str) -> str:
    """Return a text on one line of Markdown, or in one cell of its tables, where it is shown as it is."""
    return MARKS.sub(r"\\\g<0>", printable(" ".join(text.split())))
