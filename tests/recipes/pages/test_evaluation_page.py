"""An evaluation's page: every answer, pictures with boxes, intervals with their groups, and where it all came from."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from medmo_core.boxes import Boxes
from medmo_core.data.images.load import load_image
from medmo_core.data.images.overlay import overlay_boxes
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_recipes import cli
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.results import refuse_overwriting
from medmo_recipes.pages import evaluation_page
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    kit.model.save_pretrained(folder, tokenizer=kit.tokenizer, profile=kit.profile)
    return folder


def test_the_page_shows_what_was_asked_and_refuses_to_be_overwritten(
    checkpoint: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = own_data.read_text(encoding="utf-8").replace("Is a square visible?", "Is a <b>square</b> visible?")
    own_data.write_text(text, encoding="utf-8")
    out = tmp_path / "scores"
    words = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(own_data), "--out", str(out)]
    words += ["--max-new-tokens", "3", "--seed", "5"]
    assert cli.main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert values["metrics"] == json.loads((out / "metrics.json").read_text())["metrics"]
    assert "vqa: 2 of 2" in printed.err, "progress"
    provenance = values["provenance"]
    assert provenance["files_sha256"] == {str(own_data): hashlib.sha256(text.encode()).hexdigest()}
    assert (provenance["split"], provenance["seed"], provenance["checkpoint"]) == ("test", 5, str(checkpoint))
    assert provenance["torch"] and len(provenance["weights_sha256"]) == len(provenance["questions_sha256"]) == 64

    html = (out / "report.html").read_text(encoding="utf-8")
    assert "Is a &lt;b&gt;square&lt;/b&gt; visible?" in html and "<b>" not in html
    assert "2 images of 2 scans, 2 answers" in html and "too few for one" in html
    for said in (provenance["weights_sha256"], "seed: 5", "own.jsonl", "Research use only"):
        assert said in html
    assert html.count("data:image/png;base64,") == 2 and "nan" not in re.sub(r"base64,[^\"]+", "", html)
    assert html.count("<details>") == 6, "vqa, grounding, their controls, report, retrieval"
    for name in ("red.png", "scan-0"):
        assert name not in html

    before = (out / "metrics.json").read_bytes()
    assert cli.main(words) == 2
    assert "holds something already; name a new folder, or add --overwrite" in capsys.readouterr().err
    assert (out / "metrics.json").read_bytes() == before
    with (own_data.parent / "red.png").open("ab") as picture:
        picture.write(b"another file")
    assert cli.main([*words, "--overwrite", "--json"]) == 0
    now = json.loads(capsys.readouterr().out)["provenance"]
    assert now.pop("pictures_sha256") != provenance.pop("pictures_sha256") and now == provenance
    assert cli.main([*words, "--overwrite"]) == 0
    shown = capsys.readouterr().out
    assert "split test: 12 answers" in shown and f"{out / 'report.html'}" in shown


def test_retrieval_alone_counts_its_answers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--data", "embedded:retrieval", "--num-samples", "4"]
    assert cli.main(["evaluate", *words, "--out", str(tmp_path / "scores")]) == 0
    count = re.search(r"split test: (\d+) answers", capsys.readouterr().out)
    assert count is not None and int(count.group(1)) > 1


def test_data_are_never_replaced_by_results(tmp_path: Path) -> None:
    data = tmp_path / "out" / "predictions.jsonl"
    data.parent.mkdir()
    data.write_text("{}")
    with pytest.raises(ValueError, match="predictions.jsonl in it is read as data and would be replaced"):
        refuse_overwriting(tmp_path / "out", [data], overwrite=True)
    refuse_overwriting(tmp_path / "out", [tmp_path / "other.jsonl"], overwrite=True)
    refuse_overwriting(tmp_path / "new")


def test_a_picture_shows_both_kinds_of_box(own_data: Path) -> None:
    from medmo_recipes.evaluation.scores import score_answers

    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    (sample, *_) = (s for s in load_jsonl(own_data) if s.task == "grounding")
    (said,) = score_answers([sample], [kit.processor.text.target_text(sample)], kit.processor.text)
    shown = evaluation_page.picture(sample, said)
    pixels = load_image(sample.images[0].path, root=sample.root).pixels
    truth = sample.truth_boxes()
    assert isinstance(truth, Boxes)
    assert shown.image.tobytes() != overlay_boxes(pixels, None, truth).tobytes()
    assert shown.caption.startswith("Locate the square. IoU 0.9") or shown.caption.endswith("1.00")
