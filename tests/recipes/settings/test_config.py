"""Configs and the command line: types, messages, round trips."""

import dataclasses
import json
from pathlib import Path

import pytest

from medmo_core.losses import PolicyObjective
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import (
    apply_overrides,
    field_docs,
    format_config,
    read_command_line,
    setting_types,
)
from medmo_recipes.settings.run_config import SECTIONS, ConfigError, Data, Grpo, Model, RunConfig, Train


def base() -> RunConfig:
    return RunConfig(stage="align", data=Data(sources={"embedded:caption": 1.0}))


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("train.steps=12", "train.steps", 12),
        ("train.steps=1_000", "train.steps", 1000),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("data.crops=false", "data.crops", False),
        ("data.crops=True", "data.crops", True),
        ("data.max_tokens=none", "data.max_tokens", None),
        ("data.max_tokens=5", "data.max_tokens", 5),
        ("model.trainable=projector,decoder", "model.trainable", ("projector", "decoder")),
        ("optim.betas=0.8,0.95", "optim.betas", (0.8, 0.95)),
        ("model.dtype=bfloat16", "model.dtype", "bfloat16"),
        ("data.sources=a.jsonl,embedded:vqa=2", "data.sources", {"a.jsonl": 1.0, "embedded:vqa": 2.0}),
        ("data.sources=x=y.jsonl=3", "data.sources", {"x=y.jsonl": 3.0}),
        ("data.sources.embedded:vqa=2", "data.sources", {"embedded:caption": 1.0, "embedded:vqa": 2.0}),
        ("data.sources./a.b/c.jsonl=2", "data.sources", {"embedded:caption": 1.0, "/a.b/c.jsonl": 2.0}),
        ("train.out_dir=runs/a=b", "train.out_dir", "runs/a=b"),
    ],
)
def test_override_is_typed_from_the_field(override: str, field: str, expected: object) -> None:
    section, name = field.split(".")
    value = getattr(getattr(apply_overrides(base(), [override]), section), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stesp=3", ["'train.stesp'", "'train.steps'"]),
        ("docs_per_step=3", ["'docs_per_step'", "'train.docs_per_step'"]),
        ("optm.lr=3", ["'optm.lr'", "'optim.lr'"]),
        ("train.steps.more=3", ["train.steps.more"]),
        ("train.steps=many", ["train.steps=many", "int"]),
        ("train.steps=1.5", ["train.steps=1.5", "int"]),
        ("data.crops=1", ["data.crops=1", "true or false"]),
        ("model.dtype=fp16", ["model.dtype", "'fp16'", "'bfloat16'"]),
        ("optim.betas=0.9", ["optim.betas=0.9", "2 values of float"]),
        ("data.sources=a.jsonl=heavy", ["data.sources.a.jsonl=heavy", "float"]),
        ("train.steps=0", ["train.steps = 0", "1 or more"]),
        ("data.sources=a.jsonl=-1", ["data.sources.a.jsonl", "0 or more"]),
        ("data.min_pixels=99999999999", ["data.min_pixels", "max_pixels"]),
        ("rollout.temperature=0", ["rollout.temperature", "above 0"]),
        ("--steps", ["--steps", "section.field=value"]),
    ],
)
def test_wrong_override_is_explained(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(base(), [override])
    for word in words:
        assert word in str(error.value)


def test_values_are_checked_however_they_come_in() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps = 'x': expected int, got str"):
        Train(steps="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train\.steps = True: expected int, got bool"):
        Train(steps=True)
    with pytest.raises(ConfigError, match=r"'train\.stpes': did you mean 'train\.steps'"):
        base().change(train={"stpes": 1})
    with pytest.raises(ConfigError, match=r"rewards\.weights = \{\}: expected at least one"):
        RunConfig(stage="reinforce")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Model().init = "x"  # type: ignore[misc]


def test_change_leaves_the_parent_alone() -> None:
    parent = base()
    child = parent.change(name="child", train={"steps": 7})
    assert (child.name, child.train.steps, parent.train.steps) == ("child", 7, Train().steps)
    assert child.data == parent.data


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_json_and_its_own_printout(name: str) -> None:
    config = CONFIGS[name]()
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    lines = [line.split("  #")[0].rstrip() for line in format_config(config).splitlines()[1:]]
    assert len(lines) == len(setting_types())
    blank = RunConfig(stage="align").change(rewards={"weights": {"box": 1.0}})
    assert apply_overrides(blank, lines).change(stage=config.stage, name=config.name) == config


def test_every_field_says_what_it_is() -> None:
    docs = field_docs()
    for name, section in SECTIONS.items():
        assert section.__doc__
        for item in dataclasses.fields(section):  # type: ignore[arg-type]
            assert docs.get(f"{name}.{item.name}", "").endswith("."), f"{name}.{item.name} has no docstring"


def run_line(*argv: str, stage: str = "align") -> RunConfig:
    return read_command_line(argv, stage=stage, configs=CONFIGS, about=None).config


def test_command_line_mixes_flags_and_overrides() -> None:
    config = run_line("train.steps=3", "--config", "debug_align", "optim.lr=1e-2")
    assert (config.name, config.train.steps, config.optim.lr) == ("debug_align", 3, 1e-2)
    assert run_line("--data", "a.jsonl", "--data", "b.jsonl").data.sources == {"a.jsonl": 1.0, "b.jsonl": 1.0}
    assert run_line().name == "tiny_align"


def test_a_run_is_begun_again_from_its_own_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    stored = run_line("--config", "debug_align", "train.steps=7", "train.resume=true")
    path.write_text(json.dumps(stored.to_dict()))
    again = run_line("--config", str(path), "optim.lr=1e-2")
    assert again == stored.change(train={"resume": False}, optim={"lr": 1e-2})
    assert run_line("--config", str(tmp_path)) == stored.change(train={"resume": False})  # the run's folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected the config.json that a run writes"),
        ("[]", "expected one object of settings"),
        ('{"model_type": "qwen3_vl"}', "config without 'stage'"),
        ('{"stage": "align", "train": 3}', "an object for each section"),
        ('{"stage": "align", "train": {"stesp": 3}}', "did you mean 'train.steps'"),
        ('{"stage": "instruct"}', "launch medmo_recipes.instruct"),
        (None, "is no file; expected the name of a run or a run's config.json"),
    ],
)
def test_a_file_that_is_no_config_of_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        run_line("--config", str(path))
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and str(path) in told and words in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config", "debug_aling"], "did you mean 'debug_align'"),
        (["--config", "debug_instruct"], "launch medmo_recipes.instruct"),
        (["train.stesp=1"], "did you mean 'train.steps'"),
    ],
)
def test_command_line_fails_in_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_line(*argv)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and words in message and message.count("\n") == 1


def test_the_policy_objective_holds_what_the_grpo_section_says() -> None:
    section = Grpo(
        loss="cispo", epsilon_low=0.1, epsilon_high=0.3, beta=0.05, importance="token_mask", importance_cap=1.5
    )
    objective = dataclasses.asdict(section.objective())
    assert objective == {name: getattr(section, name) for name in objective}
    assert all(value != getattr(PolicyObjective(), name) for name, value in objective.items())
    assert Grpo().objective() == PolicyObjective()
