"""What training would leave out or refuse, validate names, line by line, and nothing else."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import PatchSpec
from medmo_core.data.processor import Processor
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.open_source import open_source
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import MEDMO, QWEN3_VL

BOX = {"label": "liver", "xyxy": [1, 1, 20, 20]}


def asked(image: Any = "a.png", **fields: Any) -> dict[str, Any]:
    return {"image": image, "question": "Is it?", "answer": "yes", **fields}


def picture(name: str = "a.png", **fields: Any) -> dict[str, Any]:
    return asked({"path": name, **fields})


def pointed(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "Where?", "boxes": [{**BOX, **changes}]}


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"task": "text", "messages": [{"role": role, "content": content} for role, content in turns]}


GOOD: list[Any] = [
    asked(),
    asked("dir/a b.png"),
    asked("./a.png"),
    picture(crop=[-5, -5, 40, 40]),
    picture("deep.png", window=[100, 40]),
    picture("a.gif", frame=1),
    picture(width=64, height=48),
    pointed(),
    {"image": "a.png", "question": "?", "boxes": []},
    asked(question="<|image_pad|><|im_end|>"),
    asked(choices=["yes", "no"]),
    chat(("user", "?"), ("assistant", "No.")),
    b'\xef\xbb\xbf{"image": "a.png", "question": "?", "answer": "\xc3\xa9"}\r',
    asked("alias.png"),
]
BAD: list[Any] = [
    asked("no.png"),
    asked("A.PNG"),
    asked(""),
    asked("/etc/hostname"),
    asked("dir/../../x.png"),
    asked("dir"),
    asked("out.png"),
    asked("loop.png"),
    asked("a\0.png"),
    asked("http://x/a.png"),
    asked("cut.png"),
    asked("empty.png"),
    asked("text.png"),
    asked("long.png"),
    picture(crop=[0, 0, 1, 300]),
    picture(crop=[90, 90, 99, 99]),
    picture(crop=[9, 9, 0, 0]),
    picture(crop=[0, 0, 10**6, 10**6]),
    picture(width=10, height=10),
    picture(width=48, height=64),
    picture(width=10),
    picture(width=0, height=0),
    picture(frame=1),
    picture("a.gif", frame=7),
    picture(slice_index=0),
    picture(plane="oblique"),
    picture(window=[40, 400]),
    picture("deep.png", window=[40, 0]),
    picture("deep.png", window="lung"),
    picture(sha256="0" * 64),
    picture(sha256="abc"),
    picture(spacing_mm=[0, 1]),
    asked(None),
    asked(["a.png"]),
    asked(answer=None),
    asked(answer=""),
    asked(answer=3),
    asked(question=""),
    asked(choices=["a", "b"]),
    asked(task="vqaa"),
    asked(split="Test"),
    asked(foo=1),
    asked(id=3),
    asked(group=""),
    pointed(xyxy=[20, 1, 1, 20]),
    pointed(xyxy=[1, 1, 99, 20]),
    pointed(xyxy=[-3, 1, 9, 20]),
    pointed(xyxy=[0.1, 0.1, 0.5, 0.9]),
    pointed(xyxy=[1, 2, 3]),
    pointed(label=""),
    pointed(xyxy=[1, float("nan"), 3, 4]),
    pointed(xyxy=[1, 1, float("inf"), 4]),
    pointed(image=1),
    pointed(bbox=[1, 1, 2, 2]),
    chat(("user", "?")),
    chat(("assistant", "No.")),
    chat(("user", [{"type": "image"}]), ("assistant", "No.")),
    chat(("user", "?"), ("tool", "x"), ("assistant", "No.")),
    chat(("user", [{"type": "text"}]), ("assistant", "No.")),
    {"image": "a.png", "messages": chat(("user", "?"), ("assistant", "No."))["messages"]},
    b"[1]",
    b"null",
    b"// x",
    b"{",
    b'{"image": "a.png", "question": "?", "answer": "\xe9"}',
    b'{"question": "\\ud800", "answer": "x"}',
    b"\0",
    b"[" * 9999,
    b'{"image": "a.png", "question": "?", "answer": "yes", "answer": "no"}',
    b"{'image': 'a.png'}",
    b'{"question": "?", "answer": "yes"},',
    json.dumps(asked()).encode("utf-16-le").replace(b"\n", b" "),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, data in (("cut.png", whole[:4000]), ("empty.png", b""), ("text.png", b"hello")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "dir").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "dir" / "a b.png")
    Image.new("L", (300, 1)).save(tmp_path / "long.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 99).save(tmp_path / "deep.png")
    frames = [Image.fromarray(noise[..., channel]) for channel in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for name, target in (("out.png", "/etc/hostname"), ("loop.png", "loop.png"), ("alias.png", "a.png")):
        (tmp_path / name).symlink_to(target)
    return tmp_path


def is_trained_on(file: Path, processor: Processor) -> bool:
    try:
        source = open_source(str(file))
        processor.encode(source.get(0, random.Random(0)))
    except (ValueError, OSError):
        return False
    return len(source) == 1


def test_validate_finds_what_training_would_not_use(folder: Path) -> None:
    lines = [case if isinstance(case, bytes) else json.dumps(case).encode() for case in [*GOOD, *BAD]]
    (folder / "all.jsonl").write_bytes(b"\n".join(lines))
    spec = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
    processor = Processor(Tokenizer.embedded(), {"qwen3_vl": spec}, QWEN3_VL, min_pixels=1024, max_pixels=4096)
    for number, line in enumerate(lines, start=1):
        (folder / "one.jsonl").write_bytes(line)
        assert is_trained_on(folder / "one.jsonl", processor) == (number <= len(GOOD)), line
    named = {fault.line for fault in iter_faults(folder / "all.jsonl") if fault.level == "error"}
    assert named == set(range(len(GOOD) + 1, len(lines) + 1))


@pytest.mark.parametrize("label", ["a\nb", "nodule [1]", "a:", "liver"])
def test_a_label_that_one_profile_cannot_write_is_warned_of(folder: Path, label: str) -> None:
    (folder / "one.jsonl").write_text(json.dumps({**pointed(label=label), "licence": "x"}))
    warned = [(fault.field, fault.level) for fault in iter_faults(folder / "one.jsonl")]
    spec = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
    processor = Processor(Tokenizer.embedded(), {"qwen3_vl": spec}, MEDMO, min_pixels=1024, max_pixels=4096)
    is_used = is_trained_on(folder / "one.jsonl", processor)
    assert warned == ([] if is_used else [("boxes[0].label", "warning")]) and is_used == (label == "liver")
