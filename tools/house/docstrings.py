"""Style of docstrings, comments and messages: phrases that make a reader guess, each with its place.

The word lists stand in `words.toml`. Entries are read under `Args:` and `Attributes:`. The idioms are looked for in
docstrings, comments and all other string literals, where messages live; names of variables do not count, nor does a
literal of one word, which is a key.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .sources import SourceFile, Text, docstring_node

MODULE, CLASS_QUESTION, CLASS_VERB = "module-question", "class-question", "class-imperative"
ENTRY, POINTER = "entry-elliptical", "entry-pointer"
SECTION = re.compile(r"(?P<indent> *)(Args|Attributes):")
NEW_ENTRY = re.compile(r"(?P<indent> *)(?P<name>\*{0,2}\w+(, *\*{0,2}\w+)*)( \([^)]*\))?: *(?P<text>.*)")
KEY = re.compile(r"""[a-zA-Z]*(["'])\w+\1""")
GAP = r"[\s#]+"


@dataclass(frozen=True, order=True)
class Offence:
    """A phrase that breaks a rule of style.

    Attributes:
        file: path of the file, seen from the root.
        line: line of the phrase, from 1.
        rule: name of the rule.
        text: the phrase.
    """

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """One entry under Args or Attributes.

    Attributes:
        line: line of the entry within its docstring, from 0.
        name: name of the parameter, or several with commas.
        text: first line of its description.
    """

    line: int
    name: str
    text: str


class Words:
    """Word lists of `words.toml`."""

    def __init__(self) -> None:
        lists = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
        self.idioms = {
            name: re.compile(rf"(?<!\{{)\b(?:{pattern.replace(' ', GAP)})\b", re.IGNORECASE)
            for name, pattern in lists.pop("idioms").items()
        }
        self.lists: dict[str, frozenset[str]] = {name: frozenset(words) for name, words in lists.items()}

    def holds(self, name: str, word: str) -> bool:
        """Return whether a list has a word."""
        return word in self.lists[name]


@cache
def words() -> Words:
    """Return the word lists, read once."""
    return Words()


def first_words(text: str) -> tuple[str, str]:
    """Return the first two words of a text without the punctuation around them; what is missing is empty."""
    found = [word.strip(".,;:()\"'") for word in text.split()[:2]]
    first, second = [*found, "", ""][:2]
    return first, second


def entries(docstring: str) -> Iterator[Entry]:
    """Yield the entries of a docstring whose first line has lost its indentation (`inspect.cleandoc`)."""
    section: int | None = None
    inner: int | None = None
    for number, line in enumerate(docstring.split("\n")):
        indent = len(line) - len(line.lstrip(" "))
        if start := SECTION.fullmatch(line.rstrip()):
            section, inner = len(start["indent"]), None
        elif section is not None and line.strip():
            inner = indent if inner is None else inner
            if indent <= section:
                section = None
            elif indent == inner and (entry := NEW_ENTRY.fullmatch(line)):
                yield Entry(number, entry["name"], entry["text"])


def is_elliptical(text: str) -> bool:
    """Return whether an entry begins with a preposition, a cross-reference or a verb instead of a noun."""
    first, second = first_words(text)
    if words().holds("quantities", f"{first} {second}"):
        return False
    plain = any(words().holds(name, first) for name in ("prepositions", "references", "verbs"))
    return plain or (words().holds("participles", first) and words().holds("after_participle", second))


def is_pointer(text: str) -> bool:
    """Return whether an entry is a question word alone."""
    return words().holds("pointers", text.split(";")[0].strip().rstrip(".,"))


def is_imperative(text: str) -> bool:
    """Return whether the docstring of a class begins with a verb; a word that may be a noun is judged by the next."""
    first, second = first_words(text)
    if not words().holds("imperatives", first):
        return False
    return not words().holds("also_nouns", first) or words().holds("after_verb", second)


def opens_with_question(text: str) -> bool:
    """Return whether a docstring begins with What, How, Where, ... instead of a noun."""
    return words().holds("question_words", first_words(text)[0].lower())


def opening_rules(node: ast.AST, docstring: str) -> Iterator[str]:
    """Yield the rules that the first words of a docstring break."""
    if isinstance(node, ast.Module) and opens_with_question(docstring):
        yield MODULE
    if isinstance(node, ast.ClassDef) and opens_with_question(docstring):
        yield CLASS_QUESTION
    if isinstance(node, ast.ClassDef) and is_imperative(docstring):
        yield CLASS_VERB


def docstring_offences(source: SourceFile) -> Iterator[Offence]:
    """Yield what the docstrings of modules, classes and functions do wrong, idioms aside."""
    for node in (source.tree, *source.definitions):
        constant = docstring_node(node)
        if constant is None:
            continue
        docstring = inspect.cleandoc(str(constant.value))
        head = docstring.split("\n")[0]
        for rule in opening_rules(node, docstring):
            yield Offence(source.name, constant.lineno, rule, head)
        for entry in entries(docstring):
            shown = f"{entry.name}: {entry.text}"
            if is_elliptical(entry.text):
                yield Offence(source.name, constant.lineno + entry.line, ENTRY, shown)
            elif is_pointer(entry.text):
                yield Offence(source.name, constant.lineno + entry.line, POINTER, shown)


def blocks(texts: Iterable[Text]) -> Iterator[Text]:
    """Yield string literals and comments, comments of consecutive lines and one column joined."""
    pending: Text | None = None
    for text in texts:
        if pending and text.is_comment and text.column == pending.column:
            follows = text.line == pending.line + pending.text.count("\n") + 1
            if follows:
                pending = Text(pending.line, pending.column, f"{pending.text}\n{text.text}", True)
                continue
        if pending:
            yield pending
        pending = text if text.is_comment else None
        if not text.is_comment:
            yield text
    if pending:
        yield pending


def idiom_offences(source: SourceFile) -> Iterator[Offence]:
    """Yield the idioms of a file's docstrings, comments and messages."""
    for block in blocks(source.texts):
        if KEY.fullmatch(block.text):
            continue
        for name, pattern in words().idioms.items():
            for match in pattern.finditer(block.text):
                line = block.line + block.text[: match.start()].count("\n")
                yield Offence(source.name, line, f"idiom ({name})", source.lines[line - 1].strip())


def offences(files: Iterable[SourceFile]) -> list[Offence]:
    """Return every offence of some files, ordered by file and line."""
    return sorted(offence for source in files for offence in (*docstring_offences(source), *idiom_offences(source)))


def docstring_figures(found: Iterable[Offence]) -> dict[str, int]:
    """Return the number of offences by rule; every rule is named, "of" also apart from the other entries."""
    found = list(found)
    rules = (MODULE, CLASS_QUESTION, CLASS_VERB, ENTRY, POINTER, *(f"idiom ({name})" for name in words().idioms))
    counts = {rule: sum(offence.rule == rule for offence in found) for rule in rules}
    counts[f"{ENTRY} (of)"] = sum(o.rule == ENTRY and o.text.split(": ", 1)[1].startswith("of ") for o in found)
    return counts
