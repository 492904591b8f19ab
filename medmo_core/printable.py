"""Text of others (ids, labels, paths) as a terminal may show it: without characters that move, colour or reorder it."""


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
