"""Generate: any kind of file in, text, boxes, millimetres and a picture out, and nothing of the patient."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import Batch
from medmo_core.boxes import by_image
from medmo_core.generation.decoding import Generation
from medmo_core.inference.kit import Kit
from medmo_recipes import align
from medmo_recipes.commands import generate
from medmo_recipes.commands.generate import generate_one, read_window_argument
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

BOX = 'It is here: [{"bbox_2d": [250, 500, 750, 1000], "label": "liver"}]'


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A debug model that says BOX."""
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")

    def say(*_: object, **__: object) -> list[list[Generation]]:
        return [[Generation(kit.tokenizer.encode(BOX), [], True)]]

    monkeypatch.setattr(kit.model, "generate", say)
    return kit


def write_dicom(path: Path) -> None:
    """An oblique 40 x 60 slice of a patient with a name."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    ds.PatientName, ds.PatientID = "Vandelay^Art", "ID-4711"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 40, 60, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
    ds.PixelSpacing, ds.SliceThickness = [2.0, 0.5], 5.0
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10.0, -20.0, 30.0], [1, 0, 0, 0, 1, 0]
    ds.PixelData = (np.arange(2400, dtype=np.int16) % 2000).reshape(40, 60).tobytes()
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def write_nifti(path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).integers(-200, 200, (32, 48, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def test_boxes_come_in_pixels_and_millimetres(kit: Kit, tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan.dcm")
    said = generate_one(kit, tmp_path / "scan.dcm", "Where is the liver?")
    assert said.text == BOX and said.finished
    assert said.boxes.labels == ("liver",)
    assert said.boxes.xyxy.tolist() == [[15.0, 20.0, 45.0, 40.0]]  # of 60 x 40 px
    corners = said.corners_mm()
    assert corners[0] is not None
    # Half a pixel before the first centre, then 15 columns of 0.5 mm and 20 rows of 2 mm.
    assert corners[0][0] == pytest.approx([-10.0 - 0.25 + 7.5, -20.0 - 1.0 + 40.0, 30.0])
    assert corners[0][2] == pytest.approx([-10.0 - 0.25 + 22.5, -20.0 - 1.0 + 80.0, 30.0])
    json.dumps(said.to_json())


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "deep.tif", "volume.nii.gz"])
def test_every_kind_of_file(kit: Kit, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("picture"):
        Image.fromarray(np.full((48, 32, 3), 90, dtype=np.uint8)).save(path)
    elif name == "deep.tif":
        Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)).save(path)
    else:
        write_nifti(path)
    said = generate_one(kit, path, "Where is the liver?")
    assert said.images[0].size == (32, 48)
    assert said.boxes.xyxy.tolist() == [[8.0, 24.0, 24.0, 48.0]]
    assert (said.corners_mm()[0] is not None) == (name == "volume.nii.gz")


def test_command_writes_overlay_and_no_name(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_dicom(tmp_path / "scan.dcm")
    monkeypatch.setattr(generate, "load", lambda *_, **__: kit)
    words = ["--checkpoint", "x", "--image", str(tmp_path / "scan.dcm"), "--prompt", "Where is the liver?"]
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
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each box comes in pixels of the image it names; a box without a name lies in the last one."""
    (tmp_path / "prior").mkdir()
    Image.fromarray(np.full((48, 32, 3), 90, dtype=np.uint8)).save(tmp_path / "prior" / "a.png")
    write_nifti(tmp_path / "volume.nii.gz")
    old, new = '"bbox_2d": [250, 500, 750, 1000], "label": "old"', '"bbox_2d": [0, 0, 500, 500], "label": "new"'
    both = f'[{{"image": 1, {old}}}, {{{new}}}]'
    prompts: list[str] = []

    def say(batch: Batch, **_: object) -> list[list[Generation]]:
        prompts.append(kit.tokenizer.decode(batch.input_ids.tolist(), skip_special=False))
        return [[Generation(kit.tokenizer.encode(both), [], True)]]

    monkeypatch.setattr(kit.model, "generate", say)
    monkeypatch.setattr(generate, "load", lambda *_, **__: kit)
    images = [tmp_path / "prior" / "a.png", tmp_path / "volume.nii.gz"]
    said = generate_one(kit, images, "What is new?", slice_index=None)
    assert [part.xyxy.tolist() for part in by_image(said.boxes)] == [
        [[8.0, 24.0, 24.0, 48.0]],
        [[0.0, 0.0, 16.0, 24.0]],
    ]
    assert [corners is not None for corners in said.corners_mm()] == [False, True]
    assert "Image 1: <|vision_start|>" in prompts[0] and "Image 2: <|vision_start|>" in prompts[0]
    words = ["--checkpoint", "x", "--image", str(images[1]), "--image", str(images[1]), "--prompt", "New?"]
    out = tmp_path / "overlay.png"
    assert generate.main([*words, "--slice", "1", "--slice", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "box old: [8, 24, 24, 48] px of image 1" in printed and "box new: [0, 0, 16, 24] px of image 2" in printed
    assert Image.open(out).width >= 560
    assert generate.main([*words, "--slice", "1", "--out", str(out), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [box["image"] for box in values["boxes"]] == [0, 1] and values["image_sizes"] == [[32, 48], [32, 48]]
    with pytest.raises(ValueError, match="3 slices for 2"):
        generate_one(kit, images, "What is new?", slice_index=[0, 1, 2])


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


def test_bad_input_is_explained(kit: Kit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate_one(kit, tmp_path / "a.png", "  ")
    with pytest.raises(ValueError, match=r"missing\.png: no such file"):
        generate_one(kit, tmp_path / "missing.png", "What is this?")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    with pytest.raises(ValueError, match=r"cut\.png"):
        generate_one(kit, tmp_path / "cut.png", "What is this?")
    with pytest.raises(ValueError, match=r"--window 40;400,: expected"):
        read_window_argument("40;400,")
    assert read_window_argument("40,400") == (40.0, 400.0)
    assert read_window_argument("soft_tissue") == "soft_tissue"
