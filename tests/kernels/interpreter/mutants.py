"""Kernels with a planted fault: the source of a module of kernels, changed, in the place of the module's own."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from triton.runtime.interpreter import InterpretedFunction

import medmo_kernels


def replaced(module: ModuleType, old: str, new: str) -> str:
    """Return the source of a module with one passage exchanged.

    Raises:
        AssertionError: the passage does not stand there exactly once, so the kernel has changed: plant the fault anew.
    """
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} holds {source.count(old)} times, expected once:\n{old}"
    return source.replace(old, new)


@contextmanager
def planted(module: ModuleType, source: str, folder: Path) -> Iterator[None]:
    """Let the kernels of another source serve in place of a module's own, wherever those have been imported.

    Args:
        module: module of kernels.
        source: text that takes its place.
        folder: directory to keep it in, for Triton reads kernels from files.
    """
    path = folder / Path(inspect.getfile(module)).name
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module.__name__, path)
    assert spec is not None and spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    kernels = {name: kernel for name, kernel in vars(mutant).items() if isinstance(kernel, InterpretedFunction)}
    taken = {id(vars(module)[name]): kernel for name, kernel in kernels.items()}
    for launcher in Path(medmo_kernels.__path__[0]).glob("*/launch.py"):  # else it might import the mutant, and keep it
        importlib.import_module(f"medmo_kernels.{launcher.parent.name}.launch")
    holders = [holder for name, holder in sys.modules.items() if name.startswith("medmo_kernels.")]
    with ExitStack() as stack:
        for holder in holders:
            for name, value in list(vars(holder).items()):
                if taken.get(id(value), value) is not value:
                    stack.enter_context(patch.object(holder, name, taken[id(value)]))
        yield
