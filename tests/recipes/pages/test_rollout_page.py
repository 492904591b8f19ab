"""The rollout browser shows what was sampled and earned, loads and runs nothing, and no text can become markup."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Answer, BoxAnnotation, ImageRef, Sample
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.generation.decoding import Generation
from medmo_recipes.configs import CONFIGS
from medmo_recipes.pages.rollout_index import MAX_POINTS, chart
from medmo_recipes.pages.rollout_page import MAX_SIDE, MAX_TEXT, write_page
from medmo_recipes.reinforcement.figures import answer_figures
from medmo_recipes.reinforcement.groups import Group
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet, parse_completions
from medmo_recipes.reinforcement.reward_figures import log_histograms, reward_figures, short_names
from medmo_recipes.settings.run_config import Rewards
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.monitoring.log import RunLog

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onload='x {{ 7 * 7 }} </title></svg></pre>"
RIGHT = '[{"bbox_2d": [125, 250, 500, 500], "label": "square"}]'
WIDE = '[{"bbox_2d": [0, 0, 1000, 500], "label": "square"}, {"bbox_2d": [0, 0, 100, 100], "label": "dot"}]'


@pytest.fixture(scope="module")
def processor() -> Processor:
    return load_kit(CONFIGS["debug_reinforce"](), "cpu").processor


@pytest.fixture
def rewards() -> RewardSet:
    return RewardSet.from_config(Rewards(weights={"box": 1.0, "format": 0.2}))


def make_group(
    processor: Processor, rewards: RewardSet, sample: Sample, texts: Sequence[str], name: str | None = None
) -> Group:
    generations = [Generation([3] * (4 + i), [-0.5] * (4 + i), finished=i != 1) for i in range(len(texts))]
    count = len(texts)
    parsed_boxes = parse_completions([sample] * count, texts, processor.text.profile)
    components = rewards.score(
        [sample] * count, texts, generations, prompts=[""] * count, profile=processor.text.profile,
        parsed_boxes=parsed_boxes, step=4, max_steps=9,
    )  # fmt: skip
    values = torch.tensor([v or 0.0 for v in components[rewards.names[0]]], dtype=torch.float64)
    prompt: Any = SimpleNamespace(sample=sample)
    return Group(
        name or f"{sample.id}#7", prompt, generations, texts, parsed_boxes, components, values, values - values.mean()
    )  # fmt: skip


class Page(HTMLParser):
    """A page as a browser reads it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def injections(page: Page) -> list[str]:
    """Name what of a page could run or load something."""
    found = [
        tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "link", "img", "base", "form")
    ]
    for tag, attributes in page.tags:
        found += [f"{tag} {key}" for key in attributes if key.startswith("on") or key in ("src", "srcdoc", "action")]
        for key in ("href", "xlink:href"):
            value = attributes.get(key) or ""
            if value and not re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+|index\.html|step-\d+\.html", value):
                found.append(f"{tag} {key}={value}")
    return found


@pytest.fixture
def page(processor: Processor, rewards: RewardSet, own_data: Path, tmp_path: Path) -> Page:
    by_id = {sample.id: sample for sample in load_jsonl(own_data, own_data.parent)}
    groups = [
        make_group(processor, rewards, by_id["g0"], [RIGHT, WIDE, "babble"]),
        make_group(processor, rewards, by_id["q1"], ["yes", "no", "yes"]),
    ]
    path = write_page(tmp_path / "rollouts", 20, groups, rewards, processor.text)
    assert path == tmp_path / "rollouts/step-000020.html"
    return Page(path.read_text(encoding="utf-8"))


def test_everything_is_on_the_page(page: Page) -> None:
    for text in (
        "Research use only", "Rollouts of step 20", "g0#7", "Locate the square.", RIGHT, WIDE, "babble", "truncated",
        "user: [image]", "2 of the 2 prompts", "image 1 of 1, 64 x 64 px", "box", "format",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.text.count("1.000") >= 2 and re.search(r"[+-]0\.\d{3}", page.text)  # a reward, an advantage
    assert injections(page) == []


def test_boxes_lie_in_pixels_of_the_image(page: Page) -> None:
    """True: 8, 16 to 32, 32. Sampled: thousandths of 64 px."""
    keys = ("x", "y", "width", "height")
    rectangles = [tuple(float(r[key] or 0) for key in keys) for r in page.all("rect")]
    assert rectangles == [(8, 16, 24, 16), (8, 16, 24, 16), (0, 0, 64, 32), (0, 0, 6.4, 6.4)]
    assert [g["class"] for g in page.all("g")][:3] == ["given", "true", "s-1"]
    colours = [g["stroke"] for g in page.all("g")]
    assert len(set(colours[:5])) == 5  # each can be told from the others
    assert {"p1-true", "p1-1", "p1-2", "p1-3"} <= {i["id"] for i in page.all("input")}
    targets = {label["for"] for label in page.all("label")}
    assert targets <= {i["id"] for i in page.all("input")}


def test_the_picture_is_the_image(page: Page) -> None:
    picture = page.all("image")[0]
    data = base64.b64decode((picture["href"] or "").removeprefix("data:image/jpeg;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (64, 64, 3)
    assert pixels[24, 20, 0] > 150 and pixels[4, 4].max() < 60  # the red square, and the dark beside it


def evil_page(processor: Processor, rewards: RewardSet, folder: Path) -> Page:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": EVIL}]}
    sample = Sample(
        EVIL, "grounding", (ImageRef("a.png", width=40, height=30),), (question,),
        (BoxAnnotation(EVIL, (1.0, 2.0, 20.0, 20.0)),), Answer("boxes"), root=folder,
    )  # fmt: skip
    said = json.dumps([{"bbox_2d": [100, 100, 500, 500], "label": EVIL}])
    group = make_group(processor, rewards, sample, [EVIL, said])
    rewards._extra += [(group.generations[0], EVIL, EVIL)]
    return Page(write_page(folder / "rollouts", 1, [group], rewards, processor.text).read_text(encoding="utf-8"))


def test_no_text_becomes_markup(processor: Processor, rewards: RewardSet, tmp_path: Path) -> None:
    """In an id, a question, a label, a completion, a logged extra, an alarm and the name of a reward."""
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"event": "alarm", "step": 1, "message": EVIL})
        + "\n"
        + json.dumps({"step": 1, "reward/" + EVIL.replace("/", "|"): 0.5})
        + "\n"
    )
    page = evil_page(processor, rewards, tmp_path)
    assert injections(page) == []
    assert page.text.count("<script>alert(1)</script>") >= 7
    index = Page((tmp_path / "rollouts/index.html").read_text(encoding="utf-8"))
    assert injections(index) == [] and "<script>alert(1)</script>" in index.text
    policies = [meta.get("content") or "" for meta in page.all("meta") if meta.get("http-equiv")]
    assert any("default-src 'none'" in policy for policy in policies)


def test_markup_that_gets_through_is_noticed(
    processor: Processor, rewards: RewardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jinja2

    real = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **settings: real(**{**settings, "autoescape": False}))
    assert {"script", "img", "img onerror"} <= set(injections(evil_page(processor, rewards, tmp_path)))


def test_every_image_of_a_prompt_is_shown_with_its_own_boxes(
    processor: Processor, rewards: RewardSet, tmp_path: Path
) -> None:
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    Image.new("RGB", (2000, 3000), "blue").save(tmp_path / "b.png")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]}
    images = (ImageRef("a.png", width=100, height=50), ImageRef("b.png", width=2000, height=3000))
    boxes = (BoxAnnotation("spot", (10.0, 10.0, 30.0, 20.0)), BoxAnnotation("spot", (0.0, 0.0, 500.0, 600.0), image=1))
    sample = Sample("pair", "grounding", images, (question,), boxes, Answer("boxes"), root=tmp_path)
    said = '[{"image": 2, "bbox_2d": [0, 0, 500, 500], "label": "spot"}]'
    page = Page(
        write_page(
            tmp_path, 3, [make_group(processor, rewards, sample, [said, said])], rewards, processor.text
        ).read_text()
    )
    first, second = page.all("image")
    assert (first["width"], second["width"]) == ("100", "2000")
    shown = Image.open(io.BytesIO(base64.b64decode((second["href"] or "").partition(",")[2])))
    assert max(shown.size) == MAX_SIDE and shown.getpixel((5, 5))[2] > 200
    sizes = [(float(r["width"] or 0), float(r["height"] or 0)) for r in page.all("rect")]
    assert sizes == [(20, 10), (500, 600), (1000, 1500), (1000, 1500)]
    assert "image 2 of 2, 2000 x 3000 px" in page.text


def test_a_page_is_bounded(processor: Processor, rewards: RewardSet, own_data: Path, tmp_path: Path) -> None:
    sample = next(s for s in load_jsonl(own_data, own_data.parent) if s.id == "g0")
    groups = [make_group(processor, rewards, sample, ["x" * 50_000] * 2, f"g0#{i}") for i in range(5)]
    path = write_page(tmp_path, 1, groups, rewards, processor.text, max_prompts=2)
    page = Page(path.read_text())
    assert "2 of the 5 prompts" in page.text and "g0#1" in page.text and "g0#2" not in page.text
    assert f"({50_000 - MAX_TEXT} characters more)" in page.text
    assert path.stat().st_size < 60_000


def test_a_step_without_prompts_has_a_page(processor: Processor, rewards: RewardSet, tmp_path: Path) -> None:
    assert "0 of the 0 prompts" in Page(write_page(tmp_path, 1, [], rewards, processor.text).read_text()).text


def test_a_sample_without_an_answer_has_its_place(processor: Processor, rewards: RewardSet, tmp_path: Path) -> None:
    sample = Sample("free", "report", (), ({"role": "user", "content": "Say something."},))
    page = Page(
        write_page(tmp_path, 1, [make_group(processor, rewards, sample, ["a"])], rewards, processor.text).read_text()
    )
    assert "(no text: free: nothing to learn" in page.text and "Say something." in page.text


def test_where_a_picture_comes_from_is_not_told(
    processor: Processor, rewards: RewardSet, own_data: Path, tmp_path: Path
) -> None:
    sample = next(s for s in load_jsonl(own_data, own_data.parent) if s.id == "g0")
    sample = replace(sample, group="doe-jane", provenance="ward 7")
    html = write_page(
        tmp_path, 1, [make_group(processor, rewards, sample, ["[]"])], rewards, processor.text
    ).read_text()
    for secret in ("doe-jane", "ward 7", "red.png", str(own_data.parent)):
        assert secret not in html


def test_the_index_shows_pages_curves_alarms_and_histograms(
    processor: Processor, rewards: RewardSet, own_data: Path, tmp_path: Path
) -> None:
    sample = next(s for s in load_jsonl(own_data, own_data.parent) if s.id == "g0")
    groups = [make_group(processor, rewards, sample, [RIGHT, WIDE, "babble"])]
    world: Any = ALONE
    with RunLog(tmp_path, world, steps=40, title="toy", quiet=True) as log:
        for step in (1, 2, 3):
            values = {"reward": 0.1 * step, "completion_tokens": 20.0, "entropy": float("nan") if step == 2 else 1.0}
            log.metrics(step, values | reward_figures(groups, world, rewards) | answer_figures(groups, world))
            log_histograms(log, step, groups, world, rewards)
        log.event("alarm", step=3, message="alarm (length) after step 3: longer.")
        write_page(tmp_path / "rollouts", 1, groups, rewards, processor.text)
        write_page(tmp_path / "rollouts", 3, groups, rewards, processor.text)
    index = Page((tmp_path / "rollouts/index.html").read_text())
    assert [a["href"] for a in index.all("a")] == ["step-000001.html", "step-000003.html"]
    for text in ("Research use only", "alarm (length) after step 3: longer.", "single rewards", "true_boxes", "100%"):
        assert text in index.text, text
    assert len(index.all("polyline")) == 8  # reward, tokens, entropy, boxes and true ones, unreadable, two rewards
    assert len([r for r in index.all("rect") if r.get("class") == "bar"]) == 40  # two histograms of 20 bins
    assert any(meta.get("http-equiv") == "refresh" for meta in index.all("meta"))
    assert injections(index) == []


def test_curves_keep_their_ends_and_stay_small() -> None:
    lines = [{"step": step, "reward": step / 5000} for step in range(1, 5001)]
    drawn = chart("reward", ("reward", "reward_std"), lines)
    assert drawn is not None and (drawn["first"], drawn["last"], drawn["high"]) == (1, 5000, 1.0)
    (line,) = drawn["lines"]
    points = line["points"].split()
    assert len(points) <= MAX_POINTS + 1 and points[0] == "0.0,134.0" and points[-1] == "400.0,16.0"
    assert chart("nothing", ("loss",), lines) is None


def test_figures_are_those_of_all_values(processor: Processor, rewards: RewardSet, own_data: Path) -> None:
    by_id = {s.id: s for s in load_jsonl(own_data, own_data.parent)}
    groups = [
        make_group(processor, rewards, by_id["g0"], [RIGHT, WIDE, "babble"]),
        make_group(processor, rewards, by_id["q1"], ["yes", "no", "yes"]),
    ]
    rewards.metrics["words"] += [1.0, 3.0]
    found = reward_figures(groups, ALONE, rewards)
    values = [v for v in groups[0].components["box"] if v is not None]
    assert len(values) == 3 and found["reward/box"] == pytest.approx(sum(values) / 3)
    assert found["reward/box/std"] == pytest.approx(float(np.std(values)))
    assert (found["reward/box/min"], found["reward/box/max"]) == (0.0, 1.0)
    assert found["reward/box/applies_ratio"] == 0.5 and found["reward/format/applies_ratio"] == 1.0
    assert found["logged/words"] == 2.0 and found["reward/box/s"] > 0
    answers = answer_figures(groups, ALONE)
    assert answers == {"boxes": 1.0, "true_boxes": 1.0, "unreadable_ratio": pytest.approx(1 / 3)}
    assert answer_figures(groups[1:], ALONE) == {}


def test_figures_are_global(
    processor: Processor, rewards: RewardSet, own_data: Path, tmp_path: Path, run_processes: Any
) -> None:
    """Two processes tell what one with all their groups tells, a process without groups included."""
    by_id = {s.id: s for s in load_jsonl(own_data, own_data.parent)}
    groups = [
        make_group(processor, rewards, by_id["g0"], [RIGHT, WIDE, "babble"]),
        make_group(processor, rewards, by_id["g1"], [WIDE, WIDE, "[]"]),
    ]

    def tell(split: Sequence[int], out: Path) -> Any:
        def work() -> Any:
            from medmo_recipes.training.distributed.world import connect

            with connect("cpu", timeout_s=30) as world:
                own = [groups[i] for i in range(2) if split[i] == world.rank]
                values = reward_figures(own, world, rewards) | answer_figures(own, world)
                with RunLog(out, world, steps=1, title="toy", quiet=True) as log:
                    log_histograms(log, 1, own, world, rewards)
                return values

        return work

    own = reward_figures(groups, ALONE, rewards) | answer_figures(groups, ALONE)
    for split in ((0, 1), (1, 1)):
        out = tmp_path / f"{split}"
        for values in run_processes(tell(split, out)):
            assert values == pytest.approx(own)
        (event, _) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert event["event"] == "reward_histogram" and event["reward"] == "box"
        assert len(event["counts"]) == 20 and sum(event["counts"]) == 6 and (event["low"], event["high"]) == (0.0, 1.0)


def test_short_names_stay_apart() -> None:
    names = ["box", "own/a.py:brief", "b.py:brief", "pkg.mod:long"]
    assert list(short_names(names).values()) == ["box", "own.a.py.brief", "b.py.brief", "long"]
