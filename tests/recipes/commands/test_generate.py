"""`medmo generate`: the words of the command reach the model, and the answer reaches the screen and a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import Batch
from medmo_core.generation.decoding import Generation
from medmo_core.inference.kit import Kit
from medmo_recipes import align
from medmo_recipes.commands import generate
from medmo_recipes.commands.generate import build_parser, join_window, picture_path, read_window_arguments
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

BOX = 'It is here: [{"bbox_2d": [250, 500, 750, 1000], "label": "liver"}]'


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A debug model that says BOX, and that the command loads."""
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")

    def say(*_: object, **__: object) -> list[list[Generation]]:
        return [[Generation(kit.tokenizer.encode(BOX), [], True)]]

    monkeypatch.setattr(kit.model, "generate", say)
    monkeypatch.setattr("medmo_core.inference.load", lambda *_, **__: kit)
    return kit


@pytest.mark.usefixtures("kit")
def test_command_writes_overlay_and_no_name(
    named_dicom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", "x", "--image", str(named_dicom), "--prompt", "Where is the liver?"]
    out = tmp_path / "sub" / "overlay.png"
    assert generate.main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "box liver: [15, 20, 45, 40] px" in said and "mm in the patient" in said
    assert "research use only" in said.lower()
    assert Image.open(out).width >= 280
    assert generate.main([*words, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["boxes"][0]["xyxy_px"] == [15.0, 20.0, 45.0, 40.0]
    for trace in ("Vandelay", "4711"):
        assert trace not in said + printed
        assert trace.encode() not in out.read_bytes()


def test_several_images_at_once(
    kit: Kit, nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each box comes in pixels of the image it names; a box without a name lies in the last one."""
    (tmp_path / "prior").mkdir()
    Image.fromarray(np.full((48, 32, 3), 90, dtype=np.uint8)).save(tmp_path / "prior" / "a.png")
    old, new = '"bbox_2d": [250, 500, 750, 1000], "label": "old"', '"bbox_2d": [0, 0, 500, 500], "label": "new"'
    both = f'[{{"image": 1, {old}}}, {{{new}}}]'
    prompts: list[str] = []

    def say(batch: Batch, **_: object) -> list[list[Generation]]:
        prompts.append(kit.tokenizer.decode(batch.input_ids.tolist(), skip_special=False))
        return [[Generation(kit.tokenizer.encode(both), [], True)]]

    monkeypatch.setattr(kit.model, "generate", say)
    out = tmp_path / "overlay.png"
    words = ["--checkpoint", "x", "--prompt", "New?", "--out", str(out), "--image", str(nifti)]
    assert generate.main([*words, "--image", str(tmp_path / "prior" / "a.png")]) == 0
    assert "mm in the patient" in capsys.readouterr().out
    assert "Image 1: <|vision_start|>" in prompts[0] and "Image 2: <|vision_start|>" in prompts[0]
    words += ["--image", str(nifti)]
    assert generate.main([*words, "--slice", "1", "--slice", "3"]) == 0
    printed = capsys.readouterr().out
    assert "box old: [8, 24, 24, 48] px of image 1" in printed and "box new: [0, 0, 16, 24] px of image 2" in printed
    assert Image.open(out).width >= 560
    assert generate.main([*words, "--slice", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [box["image"] for box in values["boxes"]] == [0, 1] and values["image_sizes"] == [[32, 48], [32, 48]]
    with pytest.raises(ValueError, match="3 slices for 2"):
        generate.main([*words, "--slice", "0", "--slice", "1", "--slice", "2"])


def test_a_real_checkpoint_answers(own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing is replaced: train two steps, then ask the finished run."""
    run = CONFIGS["debug_align"]().change(
        data={"sources": {str(own_data): 1.0}},
        train={"steps": 1, "device": "cpu", "out_dir": str(tmp_path / "run")},
    )
    assert align.run(run)
    image, out = own_data.parent / "red.png", tmp_path / "overlay.png"
    words = ["--checkpoint", str(tmp_path / "run"), "--image", str(image), "--prompt", "Is a square visible?"]
    assert generate.main([*words, "--out", str(out), "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert "reached --max-new-tokens" in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.usefixtures("kit")
def test_bad_words_are_explained(tmp_path: Path) -> None:
    words = ["--checkpoint", "x", "--image", str(tmp_path / "missing.png")]
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate.main([*words, "--prompt", " "])
    with pytest.raises(ValueError, match=r"missing\.png: no such file"):
        generate.main([*words, "--prompt", "What is this?"])
    for out in ("answer.jpg", str(tmp_path)):
        with pytest.raises(ValueError, match="expected the name of a PNG file"):
            generate.main([*words, "--prompt", "What is this?", "--out", out])


@pytest.mark.parametrize(
    ("words", "window"),
    [
        ([], None),
        (["--window", "soft_tissue"], "soft_tissue"),
        (["--window", "40,400"], (40.0, 400.0)),
        (["--window", "-600,1500"], (-600.0, 1500.0)),
        (["--window", "-.5,1"], (-0.5, 1.0)),
        (["--window=-600,1500"], (-600.0, 1500.0)),
        (
            ["--window", "lung", "--window", "-600,1500", "--window", "40,400"],
            ("lung", (-600.0, 1500.0), (40.0, 400.0)),
        ),
    ],
)
def test_windows_of_the_command_line(words: list[str], window: object) -> None:
    parsed = build_parser().parse_args(join_window(["--checkpoint", "x", "--image", "a", "--prompt", "?", *words]))
    assert read_window_arguments(parsed.window) == window


def test_an_empty_image_is_not_the_folder_one_is_in(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--image", "", "--prompt", "Where?"])
    assert "--image: is empty, expected a file" in capsys.readouterr().err


def test_wrong_windows_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--window 40;400,: expected"):
        read_window_arguments(["40;400,"])
    with pytest.raises(ValueError, match="given 2 times: give one, or three"):
        read_window_arguments(["lung", "bone"])
    with pytest.raises(SystemExit):  # an option is not swallowed as a window
        build_parser().parse_args(join_window(["--window", "--json"]))
    assert "expected one argument" in capsys.readouterr().err


def test_overlays_of_different_images_have_different_names() -> None:
    names = ["1.2.840.1.dcm", "1.2.840.2.dcm", "1.2.840.3", "a.nii.gz", "b.c.png", "series/", "scan.jp2"]
    stems = ["1.2.840.1", "1.2.840.2", "1.2.840.3", "a", "b.c", "series", "scan"]
    assert [picture_path(None, [Path(name)]).name for name in names] == [f"{stem}_overlay.png" for stem in stems]


def test_an_input_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    image, folder = tmp_path / "a.png", tmp_path / "series"
    image.write_bytes(b"1")
    folder.mkdir()
    (folder / "1.png").write_bytes(b"1")
    (tmp_path / "soft.png").symlink_to(image)
    (tmp_path / "hard.png").hardlink_to(image)
    (tmp_path / "linked").symlink_to(tmp_path)
    for spelling in ("a.png", "./a.png", "series/../a.png", "soft.png", "hard.png", "linked/a.png", "~/a.png", image):
        for given in (Path("a.png"), image):
            with pytest.raises(ValueError, match="would be lost; name another file"):
                picture_path(Path(spelling), [Path("other.png"), given])
    with pytest.raises(ValueError, match="would be lost"):
        picture_path(Path("linked/series/1.png"), [folder])
    assert picture_path(Path("b.png"), [image]) == Path("b.png")


@pytest.mark.usefixtures("kit")
def test_a_replaced_output_is_said(named_dicom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", "x", "--image", str(named_dicom), "--prompt", "Where?", "--out", str(tmp_path / "o.png")]
    said = []
    for more in ([], [], ["--json"]):
        assert generate.main([*words, *more]) == 0
        said.append(capsys.readouterr())
    assert ["was replaced" in one.err for one in said] == [False, True, True]
    assert json.loads(said[2].out)["finished"] is True


def test_a_folder_of_slices_is_an_image(kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    (tmp_path / "series").mkdir()
    for number in range(3):
        source.ImagePositionPatient = [0, 0, 5.0 * number]
        source.save_as(tmp_path / "series" / f"1.2.840.{number}.dcm")
    words = ["--checkpoint", "x", "--image", str(tmp_path / "series"), "--prompt", "Where?"]
    out = ["--out", str(tmp_path / "o.png"), "--json"]
    assert generate.main([*words, *out, "--plane", "coronal", "--slice", "7", "--window", "-600,1500"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["image_size"] == [128, 3] and "corners_mm" in values["boxes"][0]
