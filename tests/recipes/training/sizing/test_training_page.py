"""docs/training.md and docs/two_nodes.md say what is: launch lines, settings, the table, the columns of the log."""

import json
import re
import shlex
from pathlib import Path

import pytest

from medmo_recipes import instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import apply_overrides
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.loop.launch import launch
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.parts import select
from tools import recipe_table

ROOT = Path(__file__).resolve().parents[4]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("training.md", "two_nodes.md")}
COMMAND = re.compile(r"^(?:torchrun|python) .*?-m medmo_recipes\.\w+ .*$", re.MULTILINE)


def commands() -> list[str]:
    texts = [page.replace("\\\n", " ") for page in PAGES.values()]
    return list(dict.fromkeys(line for text in texts for line in COMMAND.findall(text)))


def test_there_are_launch_lines_for_every_recipe_and_number_of_gpus() -> None:
    assert {name for name in CONFIGS if re.fullmatch(r"medmo_[48]b_(align|instruct|instruct_highres)", name)} == set(
        recipe_table.RECIPES
    )
    for name in recipe_table.RECIPES:
        found = [line for line in commands() if f"--config {name} " in f"{line} "]
        shapes = {re.sub(r" -m .*", "", line) for line in found}
        assert any("--nproc-per-node 1" in shape for shape in shapes)
        assert any("--standalone --nproc-per-node 8" in shape for shape in shapes)
        assert any("--nnodes 8 --nproc-per-node 8" in shape for shape in shapes)


@pytest.mark.parametrize("line", commands())
def test_every_launch_line_is_accepted(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    module, *rest = words[words.index("-m") + 1 :]

    def never(config: RunConfig) -> bool:
        raise AssertionError("--print must not train")

    stage = module.removeprefix("medmo_recipes.")
    assert launch([*rest, "--print"], stage=stage, run=never, about=None) == 0
    assert capsys.readouterr().out.startswith("# ")


def test_a_wrong_launch_line_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        launch(["--config", "medmo_8b_align", "--print", "optim.rate=1"], stage="align", run=bool, about=None)


def test_every_setting_named_exists_and_takes_the_value() -> None:
    words = {word for page in PAGES.values() for code in re.findall(r"`([^`]+)`", page) for word in code.split()}
    settings = sorted(word for word in words if re.match(r"[a-z]+\.[a-z_0-9]+(\.[\w/.]+)?=", word))
    assert len(settings) > 25
    model = load_kit(CONFIGS["debug_align"](), "meta").model
    for setting in settings:
        config = CONFIGS["medmo_8b_reinforce" if setting.startswith("r") else "medmo_8b_instruct"]()
        config = config.change(parallel={"shard": True})
        changed = apply_overrides(config, [setting])
        select(model, changed.model.trainable, "model.trainable")
        select(model, [*changed.optim.lr_scale, *changed.optim.weight_decay_scale], "optim")
    with pytest.raises(ConfigError):
        apply_overrides(CONFIGS["medmo_8b_instruct"](), ["model.profile=medmoo"])


def test_the_table_is_what_the_estimates_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_table.main([]) == 0
    monkeypatch.setattr(recipe_table, "MFU", 0.5)
    assert recipe_table.main([]) == 1


def test_8b_fits_one_gpu_of_141_gb_and_4b_one_of_80() -> None:
    for name in recipe_table.RECIPES:
        limit = 80 if "_4b_" in name else 141
        assert recipe_table.estimate_variant(recipe_table.Variant(name, 1)).gigabytes < 0.9 * limit


def test_every_column_of_the_log_is_explained(tmp_path: Path) -> None:
    run = CONFIGS["debug_instruct"]().change(
        train={"steps": 1, "eval_every": 1, "eval_split": "test", "eval_docs": 4, "z_loss": 1e-3, "device": "cpu",
               "out_dir": str(tmp_path / "run")},
        optim={"lr_scale": {"encoder": 0.5}},
    )  # fmt: skip
    assert instruct.run(run)
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    explained = set(re.findall(r"`([\w/]+)`", PAGES["training.md"]))
    named = {re.sub(r"/.*", "/PART" if name.startswith("lr/") else "/TASK", name) for name in line}
    assert named - explained == {"step"}
    written = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert written <= {name.rstrip("/") for name in re.findall(r"`([\w.]+/?)`", PAGES["training.md"])}


def test_links_lead_somewhere() -> None:
    for page in PAGES.values():
        for target in re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", page):
            assert (ROOT / "docs" / target).exists(), target
