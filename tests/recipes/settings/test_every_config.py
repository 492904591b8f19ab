"""Every shipped config builds on meta tensors, prints itself and opens with its launch line."""

import importlib
import inspect

import pytest

from medmo_core.rewards import REWARDS
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.loop.launch import launch
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import make_trainable
from medmo_recipes.training.sizing.dry_run import dry_run

OFFICIAL = {"4b": 4_437_815_808, "8b": 8_767_123_696}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds(name: str) -> None:
    config = CONFIGS[name]()
    assert config.name == name == CONFIGS[name].__name__
    assert f"_{config.stage}" in name or "_lora" in name
    kit = load_kit(config, "meta")
    assert all(parameter.is_meta for parameter in kit.model.parameters())
    trainable = make_trainable(kit.model, config.model.trainable)
    assert 0 < trainable.num_parameters <= trainable.total
    size = next((number for part, number in OFFICIAL.items() if part in name), None)
    assert size in (None, trainable.total)
    assert config.rewards.weights.keys() <= REWARDS.keys()
    assert config.train.out_dir == f"runs/{name}"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_prints_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = CONFIGS[name]().stage

    def never(config: RunConfig) -> bool:
        raise AssertionError("--print must not train")

    assert launch(["--config", name, "--print", "train.steps=77"], stage=stage, run=never, about=None) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# {name} ({stage})") and "\ntrain.steps=77 " in text


@pytest.mark.parametrize("module", sorted({function.__module__ for function in CONFIGS.values()}))
def test_config_file_opens_with_launch_lines(module: str) -> None:
    text = importlib.import_module(module).__doc__ or ""
    assert "torchrun --" in text or "python -m medmo_recipes" in text
    if "8b" in module or "4b" in module:
        assert "One GPU" in text or "one GPU" in text
        assert "nproc-per-node 8" in text


def test_8b_carries_the_published_values_with_a_source_each() -> None:
    stages = ("align", "instruct_highres", "instruct", "reinforce")
    align, highres, instruct, reinforce = (CONFIGS[f"medmo_8b_{stage}"]() for stage in stages)
    assert [c.optim.lr for c in (align, highres, instruct, reinforce)] == [1e-5, 8e-6, 5e-6, 1e-5]
    assert [c.train.docs_per_step for c in (align, highres, instruct, reinforce)] == [1280, 1024, 1280, 256]
    assert [c.data.max_pixels for c in (align, highres, instruct)] == [768**2, 1280**2, 768**2]
    boxes = highres.data.sources["data/boxes.jsonl"]
    assert boxes >= sum(highres.data.sources.values()) / 2  # heavy on grounding
    rollout, grpo = reinforce.rollout, reinforce.grpo
    assert (grpo.epsilon_low, grpo.epsilon_high, rollout.num_generations, grpo.beta) == (0.15, 0.25, 4, 0.0)
    assert grpo.mask_truncated and grpo.loss == "dapo" and rollout.max_new_tokens == 1024
    source = inspect.getsource(importlib.import_module(CONFIGS["medmo_8b_align"].__module__))
    for setting in ("lr=", "docs_per_step", "num_generations=", "epsilon_low=", "epsilon_high=", "beta="):
        lines = [line for line in source.splitlines() if setting in line and "runs/" not in line]
        assert lines and all("[P]" in line or "[C]" in line for line in lines), f"{setting} has no source: {lines}"


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.replace("4b", "8b") in CONFIGS and "4b" in name])
def test_4b_is_8b_and_says_so(name: str) -> None:
    four, eight = CONFIGS[name](), CONFIGS[name.replace("4b", "8b")]()
    same = {"model": {"init": eight.model.init}, "train": {"out_dir": eight.train.out_dir}, "name": eight.name}
    assert four.change(**same) == eight
    assert "as 8B, unpublished" in (CONFIGS[name].__doc__ or "")


def test_dry_run_shows_sizes_and_the_first_batch() -> None:
    text = dry_run(CONFIGS["debug_instruct"]().change(model={"trainable": ("projector",)})).text
    for words in (
        "model.visual.merger",
        "model.language_model.layers",
        "trains ",
        "projector",
        "ESTIMATED, not measured",
    ):
        assert words in text
    assert "tokens per step: about" in text
    assert "image tokens>" in text and "<|im_start|>user" in text
    learned = text.split("[[")[1].split("]]")[0]
    assert learned.endswith("<|im_end|>") and "<|im_start|>" not in learned


def test_dry_run_of_a_large_model_needs_neither_weights_nor_data() -> None:
    found = dry_run(CONFIGS["medmo_8b_align"]())
    assert "8,767,123,696" in found.text and "not on this machine" in found.text
    assert f"no first batch: {found.problem}" in found.text and "data/captions.jsonl is no file" in found.problem
