"""Mutants that change nothing a test could see, as `equivalent.toml` lists them with the reason for each."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).parent / "equivalent.toml"


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        key: name that mutmut gives it.
        function: function that holds it, by its import path.
        removed: lines that it takes away, joined by spaces.
        added: lines that it puts there.
    """

    key: str
    function: str
    removed: str
    added: str


class Equivalents:
    """The list, read once."""

    def __init__(self, text: str) -> None:
        table = tomllib.loads(text)
        self._details = [re.compile(rf",? *(?:{detail['pattern']})") for detail in table["detail"]]
        self._mutants = {(m["function"], m["removed"], m["added"]) for m in table["mutant"]}

    def has(self, mutant: Mutant) -> bool:
        """Whether a mutant is listed, or differs from the code by details that are."""
        listed = (mutant.function, mutant.removed, mutant.added) in self._mutants
        return listed or self._bare(mutant.removed) == self._bare(mutant.added)

    def _bare(self, code: str) -> str:
        """Return code without the details, and without the spaces and commas that they leave behind."""
        for detail in self._details:
            code = detail.sub("", code)
        return re.sub(r",(?=[)\]}])", "", code.replace(" ", ""))
