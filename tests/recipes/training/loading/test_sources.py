"""Names in data.sources: data sets of the catalogue, one added as CONTRIBUTING says, and names of former versions."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.sample import Answer, ImageRef, Sample
from medmo_core.datasets import names
from medmo_core.datasets.catalogue import CATALOGUE, DataSet
from medmo_recipes import align, instruct
from medmo_recipes.commands import evaluate as evaluate_module
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import apply_overrides
from medmo_recipes.settings.run_config import ConfigError, Data, RunConfig
from medmo_recipes.training.loading.sources import load_mixture, load_mixtures


class Shades:
    """Pictures that are bright or dark: a data set as CONTRIBUTING describes one."""

    name = "shades"

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split

    def __len__(self) -> int:
        return {"train": 6, "test": 4}.get(self.split, 0)

    def get(self, index: int, rng: random.Random) -> Sample:
        """Return sample `index`; nothing about it is random."""
        word = "yes" if index % 2 else "no"
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it bright?"}]}
        name, image = f"{self.split}-{index}", ImageRef(f"{word}.png", 64, 64)
        answer, own = Answer("open", word), {"split": self.split, "group": name, "root": self.root}
        return Sample(name, "vqa", (image,), (question,), answer=answer, licence="CC0-1.0", **own)


@pytest.fixture
def shades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Add the data set to the catalogue by the one line that it takes."""
    for word, value in (("yes", 250), ("no", 5)):
        Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)).save(tmp_path / f"{word}.png")
    monkeypatch.setitem(CATALOGUE, "shades", DataSet(lambda split, crops: Shades(tmp_path, split)))
    return tmp_path


def test_a_data_set_of_the_catalogue_trains_and_is_evaluated(shades: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = CONFIGS["debug_instruct"]().change(
        data={"sources": {"shades": 1.0}}, train={"steps": 2, "out_dir": str(shades / "run"), "device": "cpu"}
    )
    assert instruct.run(run)
    lines = [json.loads(line) for line in (shades / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 2
    capsys.readouterr()
    words = ["--checkpoint", str(shades / "run"), "--data", "shades", "--max-new-tokens", "2", "--device", "cpu"]
    assert evaluate_module.main([*words, "--num-samples", "3", "--out", str(shades / "scores")]) == 0
    assert "shades, split test: 6 answers" in capsys.readouterr().out  # three, and three with another's image
    metrics = json.loads((shades / "scores/metrics.json").read_text())["metrics"]
    assert metrics["vqa_accuracy"]["n"] == 3 and metrics["vqa_accuracy"]["baseline"] is not None
    with pytest.raises(ValueError, match=r"shades: nothing to score in split 'val' .*it has no sample at all"):
        evaluate_module.main([*words, "--split", "val"])


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_data_set_serves_training_and_evaluation(name: str) -> None:
    source = CATALOGUE[name].open("train", True)
    assert source.name == name and len(source) > 0
    assert source.get(0, random.Random(3)) == source.get(0, random.Random(3))
    held_out = CATALOGUE[name].evaluation_samples("test", 5, 0)
    assert held_out == CATALOGUE[name].evaluation_samples("test", 5, 0) and 0 < len(held_out) <= 5
    assert {sample.split for sample in held_out} == {"test"}


def test_an_unknown_name_is_answered_with_the_nearest_or_with_what_there_is(tmp_path: Path) -> None:
    def opened(name: str) -> None:
        load_mixture(Data(sources={name: 1.0}), seed=0)

    with pytest.raises(ConfigError, match=r"data\.sources: unknown data set 'embedded:vqaa': did you mean"):
        opened("embedded:vqaa")
    with pytest.raises(ConfigError, match=r"unknown data set 'embeded:vqa': did you mean 'embedded:vqa'"):
        opened("embeded:vqa")
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl is no file; expected .*, or a data set: embedded:caption"):
        opened(str(tmp_path / "nowhere.jsonl"))


@pytest.fixture
def no_report_yet() -> None:
    names._report_former.cache_clear()


@pytest.mark.usefixtures("no_report_yet")
def test_former_names_are_accepted_reported_once_and_draw_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(values: dict[str, Any]) -> list[Sample]:
        mixture = load_mixture(Data(sources=values, crops=True), seed=7)
        return [mixture.draw(number) for number in range(20)]

    now = drawn({"embedded:vqa": 1.0, "embedded:pair": 2.0})
    assert capsys.readouterr().err == ""
    assert drawn({"sample:vqa": 1.0, "sample:pair": 2.0}) == now
    assert drawn({"sample:vqa": 1.0, "sample:pair": 2.0}) == now
    said = capsys.readouterr().err.splitlines()
    assert said == ["sample:vqa is now called embedded:vqa", "sample:pair is now called embedded:pair"]


def test_held_out_pictures_of_another_source_are_found_before_training(tmp_path: Path) -> None:
    """And none is looked for where nothing is held out."""
    for name, split in (("one", "train"), ("two", "test")):
        Image.new("L", (9, 9)).save(tmp_path / f"{name}.png")  # alike byte for byte
        records = [{"image": f"{name}.png", "question": "?", "answer": "yes", "split": split}]
        records += [{"question": "?", "answer": "yes", "split": other} for other in ("train", "test")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = CONFIGS["debug_instruct"]().change(
        train={"out_dir": str(tmp_path / "run"), "eval_every": 1, "eval_split": "test"},
    )
    data = replace(config.data, sources={str(tmp_path / f"{name}.jsonl"): 1.0 for name in ("one", "two")})
    config = replace(config, data=data)
    with pytest.raises(
        RecordError, match=r"a copy of 'two.png' is in split 'test' here and in 'train' in .*one.jsonl:1"
    ):
        load_mixtures(config)
    assert load_mixtures(config.change(train={"eval_every": 0}))[1] is None


def test_what_the_embedded_set_draws_does_not_depend_on_its_new_name() -> None:
    """The random numbers of earlier runs: named by the seed, the former name and the number of the draw."""
    mixture = load_mixture(Data(sources={"embedded:vqa": 1.0}, crops=True), seed=7)
    source = CATALOGUE["embedded:vqa"].open("train", True)
    keys = random.Random("7/sample:vqa/epoch/0")
    order = sorted(range(len(source)), key=[keys.random() for _ in range(len(source))].__getitem__)
    expected = [source.get(order[number], random.Random(f"7/sample:vqa/{number}")) for number in range(10)]
    assert [mixture.draw(number) for number in range(10)] == expected


@pytest.mark.usefixtures("no_report_yet")
def test_former_names_on_the_command_line_change_the_entry_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS["debug_instruct"]().change(data={"sources": {"embedded:vqa": 1.0, "embedded:report": 1.0}})
    changed = apply_overrides(config, ["data.sources.sample:vqa=3"])
    assert list(changed.data.sources.items()) == [("embedded:vqa", 3.0), ("embedded:report", 1.0)]
    assert capsys.readouterr().err == "sample:vqa is now called embedded:vqa\n"


@pytest.mark.usefixtures("no_report_yet")
def test_a_checkpoint_with_former_names_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three steps in one go equal two whose checkpoint says `sample:`, and one more."""
    config = CONFIGS["debug_align"]().change(
        optim={"schedule": "constant", "warmup_ratio": 0.0},
        train={"steps": 3, "save_every": 2, "device": "cpu", "out_dir": str(tmp_path / "whole")},
    )
    assert config.data.sources == {"embedded:caption": 1.0}
    assert align.run(config)
    parts = config.change(train={"steps": 2, "out_dir": str(tmp_path / "parts")})
    to_dict = RunConfig.to_dict
    with monkeypatch.context() as former:
        former.setattr(RunConfig, "to_dict", lambda self: with_former_names(to_dict(self)))
        assert align.run(parts)
    assert "sample:caption" in (tmp_path / "parts/checkpoints/step-000002/state.json").read_text()
    capsys.readouterr()
    assert align.run(parts.change(train={"steps": 3, "resume": True}))
    said = capsys.readouterr().err
    assert "sample:caption is now called embedded:caption" in said and "data.sources" not in said
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, file.read_text().splitlines()) if "loss" in line]
        for file in (tmp_path / "whole/metrics.jsonl", tmp_path / "parts/metrics.jsonl")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def with_former_names(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values).replace("embedded:", "sample:"))
