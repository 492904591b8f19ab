"""Each counting rule of `tools/measure_house.py` finds what was planted, and leaves alone what only looks like it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from tools.house import comments, docstrings, habits, imports, lengths, names, table
from tools.house.figures import Figure, measure
from tools.house.sources import LIBRARY, SHIPPED, SourceFile, of_parts, sources
from tools.measure_house import main

Plant = Callable[..., list[SourceFile]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Return a function that writes files, each named by its path with `__` for a slash, and reads the checkout."""

    def write(**files: str) -> list[SourceFile]:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")
        return sources(tmp_path)

    return write


def package(root: Path, folder: str, text: str = "") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "__init__.py").write_text(dedent(text), encoding="utf-8")


def graph(files: list[SourceFile]) -> dict[str, set[str]]:
    return imports.graph_of(imports.modules_of(of_parts(files, SHIPPED)))


def rules(files: list[SourceFile]) -> list[str]:
    return [f"{offence.line} {offence.rule}" for offence in docstrings.offences(files)]


def test_files_belong_to_their_part_and_hidden_ones_to_none(plant: Plant) -> None:
    plant(**{"recipes__.venv__f": "", "recipes__build__g": "", "notebooks__h": ""})
    files = plant(medmo_core__a="", kernels__medmo_kernels__b="", recipes__c="", tools__d="", tests__e="", setup="")
    assert [source.part for source in files] == ["kernels", "core", "recipes", "tools", "tests", "other"]
    assert [source.name for source in of_parts(files, LIBRARY)][-1] == "recipes/c.py"


def test_lengths_take_the_docstring_off_and_leave_decorators_out(plant: Plant) -> None:
    files = plant(
        recipes__a='''
        @decorated
        def f():
            """One.

            Two.
            """
            return 1

        class Big:
            def g(self):
                return 1
        '''
    )
    by_name = {item.name.split()[-1]: (item.lines, item.bare) for item in lengths.function_lengths(files)}
    assert by_name == {"f": (6, 2), "g": (2, 2)}
    assert [item.lines for item in lengths.class_lengths(files)] == [3]
    assert lengths.longest(lengths.function_lengths(files), bare=True).bare == 2
    assert lengths.longest([]).name == "none"


def test_percentiles_are_values_that_were_seen() -> None:
    assert [lengths.percentile(range(1, 11), share) for share in (0.5, 0.9, 0.99)] == [5, 9, 10]
    assert lengths.percentile([], 0.9) == 0


def test_a_folder_holds_what_lies_directly_in_it(plant: Plant, tmp_path: Path) -> None:
    package(tmp_path, "recipes/x")
    sizes = lengths.folder_sizes(plant(recipes__x__a="", recipes__x__b="", recipes__x__y__c=""))
    assert sizes == {"recipes/x": 2, "recipes/x/y": 1}


def test_annotations_leave_self_kernels_and_lambdas_out(plant: Plant) -> None:
    files = plant(
        recipes__a="""
        class A:
            def f(self, a: int, *rest, key: str = "", **more: int) -> None: ...
        @classmethod
        def g(cls, b): return lambda c: c
        @triton.jit
        def kernel(x): ...
        @triton.jit(do_not_specialize=["n"])
        def other(n): ...
        """
    )
    assert habits.annotated_arguments(files) == habits.Share(3, 5)
    assert habits.annotated_returns(files) == habits.Share(1, 2)
    assert habits.Share(0, 0).percent == 100


def test_docstrings_are_asked_of_public_names_only(plant: Plant) -> None:
    files = plant(
        recipes__a='''
        class A:
            """Documented."""
            def f(self): ...
            def _g(self): ...
            def __len__(self): ...
        class _B:
            def h(self): ...
        def i():
            """Documented."""
            def inner(): ...
        if True:
            def j(): ...
        '''
    )
    assert habits.public_docstrings(files) == habits.Share(2, 4)


def test_kernels_functions_and_ops_are_found_as_they_are_registered(plant: Plant) -> None:
    files = plant(
        medmo_core__a="""
        @triton.jit
        def k(): ...
        @jitter
        def no(): ...
        class F(torch.autograd.Function): ...
        class G(Function): ...
        @torch.library.custom_op("m::a", mutates_args=())
        def a(): ...
        @triton_op("m::b", mutates_args={})
        def b(): ...
        library.define("c(Tensor x) -> Tensor")
        torch.library.define("m::d", "(Tensor x) -> Tensor")
        words.define("a word")
        """
    )
    counts = (habits.jit_functions(files), habits.autograd_functions(files), habits.registered_ops(files))
    assert counts == (1, 1, 4)


def test_lazy_imports_know_which_lead_to_triton(plant: Plant) -> None:
    files = plant(
        recipes__kernel="import triton",
        recipes__launch="from .kernel import f",
        recipes__plain="import torch",
        recipes__op="""
        import os
        def f():
            from .launch import x, y
            def inner():
                from . import kernel
            import numpy
            from .plain import z
        """,
    )
    assert habits.lazy_imports(imports.modules_of(files)) == (4, 2)


@pytest.mark.parametrize(
    ("include", "part"),
    [('["medmo_core"]', 2), ('["medmo_core", "recipes/a.py"]', 3), ('["."]', 4), ('["."]\nexclude = ["recipes"]', 2)],
)
def test_the_share_that_pyright_checks_follows_its_settings(
    plant: Plant, tmp_path: Path, include: str, part: int
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.pyright]\ninclude = {include}\n")
    files = plant(medmo_core__a="1\n2\n", recipes__a="1\n", recipes__b="1\n")
    assert habits.checked_lines(tmp_path, files) == habits.Share(part, 4)


def test_changes_of_the_path_are_named(plant: Plant) -> None:
    files = plant(tools__a='import sys\nsys.path.insert(0, "x")\nsys.path.append("y")\nprint(sys.path)\n')
    assert habits.path_changes(files) == ["tools/a.py:2", "tools/a.py:3"]


@pytest.mark.parametrize(
    "text",
    [
        "# x = f(1)",
        "# return x + 1",
        "# for x in y:",
        "# print(x)",
        "# import os",
        "# x: int = 1",
        "#del x",
        "# x += 1",
    ],
)
def test_code_in_a_comment_is_seen(text: str) -> None:
    assert comments.is_code(text)


@pytest.mark.parametrize(
    "text",
    [
        "# why it is so",
        "# alike",
        "# (T, H, D)",
        "# [BL, BD]",
        "# note: something",
        "# a + b",
        "# 3.5",
        "# type: ignore[assignment]",
        "# noqa: E402",
        "# in short:",
        "#",
    ],
)
def test_prose_shapes_and_directives_are_no_code(text: str) -> None:
    assert not comments.is_code(text)


def test_code_beside_code_is_a_remark(plant: Plant) -> None:
    (source,) = plant(recipes__a="x = 1  # y = 2\n    # y = 2\nz = '# y = 2'\n".replace("    #", "#"))
    assert [text.line for text in comments.code_comments(source)] == [2]


def test_banners_notes_and_hatches_are_counted_in_comments_only(plant: Plant) -> None:
    files = plant(
        recipes__a='''
        # --- shapes ---------
        # ======
        #### end
        # -- two dashes, --- and three later
        # ----
        x = "# --- no ---"  # TODO: later
        y = 1  # type: ignore[arg-type]
        z = 1  # pyright: ignore
        w = 1  # noqa: E501
        v = 1  # fmt: skip
        # a note about noqa, TODOS and the type of what to ignore
        """
        # --- docstring ---
        """
        ''',
        recipes__b='"""\n# --- in a string ---\n"""\n',
    )
    assert comments.banners(files) == [f"recipes/a.py:{line}" for line in (2, 3, 4, 6)]
    patterns = (comments.NOTE, comments.TYPE_IGNORE, comments.NOQA, comments.FMT_SKIP)
    assert [comments.count(files, pattern) for pattern in patterns] == [1, 2, 1, 1]


def test_names_are_unused_unless_something_outside_reads_them(plant: Plant, tmp_path: Path) -> None:
    package(tmp_path, "medmo_core", '__all__ = ["handed_on"]\nfrom .a import handed_on\n')
    files = plant(
        medmo_core__a="""
        UNUSED, USED = 1, 2
        QUOTED: int = 3
        OFFERED = 4
        def handed_on(): return handed_on()
        def tested(): return USED
        def _private(): ...
        class Shape:
            def area(self): ...
            def used(self): ...
        """,
        recipes__b='from medmo_core.a import Shape\nShape().used()\ngetattr(x, "QUOTED")\n',
        tests__c="from medmo_core.a import tested\ntested()\nShape().area()\n",
    )
    (tmp_path / "README.md").write_text("Call `OFFERED`, not UNUSED.\n")
    nowhere, in_tests = names.unused(tmp_path, files)
    assert [item.name for item in nowhere] == ["UNUSED", "handed_on", "_private"]
    assert [item.name for item in in_tests] == ["tested", "area"]


def test_a_name_of_many_files_is_a_convention(plant: Plant, tmp_path: Path) -> None:
    walked = {f"recipes__{letter}": "EXAMPLES = []\n" for letter in "abc"}
    files = plant(**walked, tests__d="module.EXAMPLES")
    assert names.unused(tmp_path, files) == ([], [])
    assert len(names.unused(tmp_path, [source for source in files if source.name != "recipes/c.py"])[1]) == 2


def test_imports_lead_to_the_file_that_defines_the_name(plant: Plant, tmp_path: Path) -> None:
    package(tmp_path, "medmo_core/boxes", "from .text import Boxes\nfrom .text import write as say\nHERE = 1\n")
    package(tmp_path, "recipes")
    files = plant(
        medmo_core__boxes__text="",
        tools__page="",
        recipes__a="from medmo_core.boxes import Boxes\nimport numpy\n",
        recipes__b="from medmo_core.boxes import HERE, say\nfrom . import a\n",
        recipes__c="import medmo_core.boxes\nfrom .a import anything\n",
        benchmarks__d="from tools import page\n",
    )
    arrows = graph(files)
    assert arrows["medmo_recipes.a"] == {"medmo_core.boxes.text"}
    assert arrows["medmo_recipes.b"] == {"medmo_core.boxes", "medmo_core.boxes.text", "medmo_recipes.a"}
    assert arrows["medmo_recipes.c"] == {"medmo_core.boxes", "medmo_recipes.a"}
    assert arrows["benchmarks.d"] == {"tools.page"}


def test_circles_see_lazy_and_typing_imports(plant: Plant) -> None:
    files = plant(
        recipes__a="def f():\n    from .b import x\n",
        recipes__b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .c import y\n",
        recipes__c="from .a import z\n",
        recipes__d="from .a import z\n",
        tools__t="import benchmarks.s\n",
        benchmarks__s="import tools.u\n",
        tools__u="",
    )
    arrows = graph(files)
    assert imports.circles(arrows) == [("medmo_recipes.a", "medmo_recipes.b", "medmo_recipes.c")]
    by_part = imports.parts_graph(imports.modules_of(files), arrows)
    assert imports.circles(by_part) == [("benchmarks", "tools")]
    found = [(item.is_lazy, item.is_typing) for item in imports.imports_of("medmo_recipes.b", files[1])]
    assert found == [(False, False), (False, True)]


def test_the_longest_chain_takes_a_circle_for_one_stop() -> None:
    arrows = {"a": {"b"}, "b": {"c", "e"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"g"}, "g": set(), "h": {"g"}}
    assert imports.circles(arrows) == [("b", "c")]
    assert imports.longest_chain(arrows) == ["a", "b", "e", "f", "g"]
    assert imports.longest_chain({}) == []


def test_arrows_up_are_imports_of_a_higher_floor(plant: Plant) -> None:
    files = plant(
        medmo_core__a="from medmo_recipes.b import x\nfrom .c import y\n",
        medmo_core__c="",
        recipes__b="from medmo_core.c import y\n",
    )
    modules = imports.modules_of(files)
    up = imports.arrows_up(graph(files), lambda module: imports.FLOORS[modules[module].part])
    assert up == [("medmo_core.a", "medmo_recipes.b")]


def test_openings_of_docstrings(plant: Plant) -> None:
    files = plant(
        recipes__a='''\
        """What a run reports."""
        class A:
            """Hold N boxes of one image."""
        class B:
            """How a run ends."""
        class C:
            """State of a run."""
        class D:
            """State the answer in a form that can be scored."""
        def f():
            """What a function may begin with is not judged here."""
        ''',
        recipes__b='"""Whatever happens."""\n',
    )
    wanted = ["1 module-question", "3 class-imperative", "5 class-question", "9 class-imperative"]
    assert rules(files) == wanted


def test_entries_that_read_only_after_their_name(plant: Plant) -> None:
    files = plant(
        recipes__a='''\
        def f():
            """Do it.

            Args:
                a: of the image,
                    of: a continuation is no entry.
                b, c: see a.
                *rest: has its own rule.
                eps: added to the variance.
                d: added tokens.
                e: at least one image.
                device: where.
                where: where the run stands.
                g (int): in pixels.

            Returns:
                h: of another section.
            """
        class A:
            """Place of an image.

            Attributes:
                width: of the picture.
            """
        '''
    )
    found = [5, 7, 8, 9, 14, 23]
    lines = {f"{line} entry-elliptical" for line in found} | {"12 entry-pointer"}
    assert set(rules(files)) == lines
    figures = docstrings.docstring_figures(docstrings.offences(files))
    assert (figures["entry-elliptical"], figures["entry-elliptical (of)"], figures["entry-pointer"]) == (6, 2, 1)


def test_idioms_are_found_across_lines_and_not_in_names(plant: Plant) -> None:
    files = plant(
        recipes__a='''\
        """Written whole or not
        at all."""
        told = {"told": mend}
        # a name of
        # its own, and a loss that is no number
        raise ValueError(f"{told} treats them alike; mended")  # tells them apart by no number of marks
        '''
    )
    wanted = [
        "1 idiom (or not at all)",
        "4 idiom (of its own)",
        "5 idiom (no number)",
        "6 idiom (alike)",
        "6 idiom (mend)",
    ]
    assert rules(files) == wanted


def test_the_list_has_places_and_can_be_narrowed(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(recipes__a='"""What."""\n', medmo_core__b='"""How."""\n', tests__c='"""How."""\n')
    assert main(["--root", str(tmp_path), "--list", "docstrings", "recipes"]) == 1
    assert capsys.readouterr().out == "recipes/a.py:1: module-question: What.\n"
    assert main(["--root", str(tmp_path), "--list", "docstrings", "tools"]) == 0


def test_worse_figures_fail_the_comparison(plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(recipes__a='"""A run."""\n')
    stored = tmp_path / "old.json"
    assert main(["--root", str(tmp_path), "--json", str(stored)]) == 0
    assert "| files, library | 1 |" in capsys.readouterr().out
    assert main(["--root", str(tmp_path), "--beside", str(stored)]) == 0
    plant(recipes__b="assert x  # TODO\n")
    assert main(["--root", str(tmp_path), "--beside", str(stored)]) == 1
    printed = capsys.readouterr()
    assert printed.err == "worse: asserts, notes, folder.fullest\n" and printed.out.count("**worse**") == 3
    assert {item["key"] for item in json.loads(stored.read_text())} >= {"chain.library", "circles"}


def test_a_figure_is_worse_in_its_direction_and_only_where_it_shows() -> None:
    few = Figure("a", "a", 1.0, "less", digits=1)
    assert table.is_worse(few, replace(few, value=2.0)) and not table.is_worse(few, replace(few, value=0.0))
    assert not table.is_worse(few, replace(few, value=1.04))
    much = replace(few, better="more")
    assert table.is_worse(much, replace(much, value=0.0)) and not table.is_worse(much, replace(much, value=2.0))
    neither = replace(few, better="")
    assert not table.is_worse(neither, replace(neither, value=9.0))
    assert table.beside([], [few])[1] == []


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--root", str(tmp_path)])
    assert ended.value.code == 2 and "expected kernels/medmo_kernels, medmo_core, recipes" in capsys.readouterr().err


def test_an_empty_checkout_has_figures(tmp_path: Path) -> None:
    assert {figure.key: figure.value for figure in measure(tmp_path)}["files.library"] == 0
