"""The comparison of box rewards: it runs, goes on where it stopped, and its committed page is that of its figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.box_rewards import __main__ as compare
from benchmarks.studies.box_rewards import one_run
from benchmarks.studies.box_rewards.asking import metrics_of
from benchmarks.studies.box_rewards.plan import FIGURES, PLANS, read_plan, stored_rounds
from benchmarks.studies.box_rewards.start import NOTE, QUICKSTART, init_of, pin_weights
from medmo_core.errors import InputError
from medmo_core.metrics import paired_interval
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.provenance import weights_digest
from medmo_recipes.training.model.kit import load_kit

QUESTIONS = {
    "one box": {"grounding": 4, "absent": 4, "vqa": 4, "sampled": 2},
    "targets": {"find_all": 10, "find_none": 6, "count": 4, "judged": 12},
}


@pytest.fixture(params=list(QUESTIONS))
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two arms, two seeds, one step of the debug model."""
    values = {
        "about": "a test",
        "config": "debug_reinforce",
        "settings": ["rollout.max_new_tokens=4"],
        "arms": {"box": {"box": 1.0, "format": 0.2}, "no box term": {"format": 1.0}},
        "seeds": [1, 2],
        "steps": 1,
        "questions": QUESTIONS[request.param],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_every_arm_is_trained_measured_and_told(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = load_kit(CONFIGS["debug_reinforce"](), "cpu")
    kit.model.save_pretrained(tmp_path / "start", tokenizer=kit.processor.tokenizer, profile=kit.profile)
    words = ["--init", str(tmp_path / "start"), "--plan", str(plan), "--out", str(tmp_path / "runs"), "--jobs", "1"]
    figures = tmp_path / "figures/plan.json"
    compare.main([*words, "--figures", str(figures)])
    told = json.loads(figures.read_text())
    assert told["init_sha256"] == weights_digest(tmp_path / "start")
    metrics = metrics_of(read_plan(plan).questions)
    assert list(told["arms"]) == ["instruct", "box", "no box term"]
    assert [len(told["arms"]["box"][key]["seeds"]) for key in metrics] == [2] * len(metrics)
    assert set(told["against"]) == {"instruct", "no box term"}
    said = capsys.readouterr().out
    assert "| no box term |" in said
    if "answers" in told:
        assert "| ribs |" in said and "| as it is | 0.9" in said
        for key, stored in told["answers"].items():
            pair = (stored["arms"]["box"], stored["arms"]["no box term"])
            low, high = paired_interval(*pair, stored["images"]) or (None, None)
            row = told["against"]["no box term"][key]
            assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))

    def untouched(*_: Any) -> None:
        raise AssertionError("a finished arm was trained again")

    monkeypatch.setattr(one_run.reinforce, "run", untouched)
    found = one_run.run_one(read_plan(plan), "box", 1, tmp_path / "start", tmp_path / "runs")
    assert found == json.loads((tmp_path / "runs/box-1/measured.json").read_text())

    weights_in(tmp_path / "other", b"others")
    with pytest.raises(InputError, match="its runs began from weights"):
        compare.main(["--init", str(tmp_path / "other"), *words[2:], "--figures", str(figures)])
    assert json.loads(figures.read_text()) == told


def weights_in(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_a_round_with_a_start_of_its_own_begins_from_no_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--init is missing.*recipes.instruct --config tiny_instruct.*runs/targets"):
        compare.main(["--plan", str(PLANS / "round_4.json"), "--out", str(tmp_path / "never")])
    assert not (tmp_path / "never").exists()
    planned = {path.stem: read_plan(path) for path in PLANS.glob("*.json")}
    assert init_of(planned["round_4"], Path("runs/targets/final")) == Path("runs/targets/final")
    assert init_of(planned["round_3"], None) == QUICKSTART


def test_a_folder_of_runs_goes_on_from_the_weights_it_began_from_alone(tmp_path: Path) -> None:
    one, other = weights_in(tmp_path / "one", b"1"), weights_in(tmp_path / "other", b"2")
    out = tmp_path / "out"
    digest = pin_weights(one, out)
    assert pin_weights(one, out) == digest == weights_digest(one) != weights_digest(other)
    with pytest.raises(InputError, match=f"its runs began from weights of SHA-256 {digest[:12]}"):
        pin_weights(other, out)
    (out / "instruct").mkdir()
    (out / NOTE).unlink()
    with pytest.raises(InputError, match="another --out"):
        pin_weights(one, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no weights"):
        pin_weights(tmp_path / "empty", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_page_is_written_from_the_stored_figures_though_the_last_round_is_planned_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "PAGE", tmp_path / "page.md")
    assert compare.main(["--page"]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == compare.page(stored_rounds(FIGURES))


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    rounds = stored_rounds(FIGURES)
    assert compare.PAGE.read_text(encoding="utf-8") == compare.page(rounds)
    plans = {name: json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8")) for name in rounds}
    assert {name: figures["plan"] for name, figures in rounds.items()} == plans
