"""Copies of a model in other processes: same results, same errors, and an end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from medmo_core.data.processor import Processor
from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.read import sample_from_json
from medmo_core.errors import InputError
from medmo_core.inference import Kit
from medmo_core.inference.copies import Copies, CopyDied, num_useful
from medmo_core.models.medmo import MedMO


def total(model: MedMO, processor: Processor, factor: int) -> tuple[int, int, float]:
    weight = model.head_weight.detach()
    return os.getpid(), torch.get_num_threads(), float(weight.sum()) * factor * len(processor.specs)


def refuse(model: MedMO, processor: Processor, name: str) -> NoReturn:
    raise InputError(f"{name} cannot be read")


def refuse_record(model: MedMO, processor: Processor) -> NoReturn:
    sample_from_json({"id": "s", "question": 5})
    raise AssertionError("the record was taken")


def die(model: MedMO, processor: Processor) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def test_calls_are_answered_in_order_by_other_processes_of_one_thread(kit: Kit) -> None:
    calls = [(factor,) for factor in range(6)]
    here = list(Copies(kit.model, kit.processor).start(total, calls))
    with Copies(kit.model, kit.processor, 2) as copies:
        there = list(copies.start(total, calls))
    assert [value for *_, value in there] == [value for *_, value in here] != [0.0] * 6
    assert {process for process, *_ in here} == {os.getpid()}
    assert os.getpid() not in {process for process, *_ in there} and {threads for _, threads, _ in there} == {1}


def test_without_processes_a_call_waits_until_its_result_is_wanted(kit: Kit) -> None:
    results = Copies(kit.model, kit.processor).start(refuse, [("a.png",)])
    with pytest.raises(InputError, match=r"^a\.png cannot be read$"):
        next(results)


def test_errors_arrive_as_they_were_raised(kit: Kit) -> None:
    with Copies(kit.model, kit.processor, 2) as copies:
        with pytest.raises(InputError, match=r"^b\.png cannot be read$"):
            list(copies.start(refuse, [("b.png",), ("c.png",)]))
        with pytest.raises(RecordError) as here:
            refuse_record(kit.model, kit.processor)
        with pytest.raises(RecordError) as there:
            list(copies.start(refuse_record, [()]))
    assert str(there.value) == str(here.value) and there.value.faults == here.value.faults


def test_a_process_that_is_killed_is_told(kit: Kit) -> None:
    with Copies(kit.model, kit.processor, 2) as copies, pytest.raises(CopyDied, match="perhaps because memory ran out"):
        list(copies.start(die, [()]))


def test_several_processes_are_for_the_cpu(kit: Kit) -> None:
    elsewhere = MedMO(kit.model.config, device="meta")
    with pytest.raises(InputError, match="2 processes, but the model is on meta"):
        Copies(elsewhere, kit.processor, 2)
    assert num_useful(elsewhere) == 1


def test_small_models_get_as_many_processes_as_torch_may_use_threads(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert num_useful(kit.model) == expected
    monkeypatch.setattr("medmo_core.inference.copies.MOST_BYTES", 1000)
    assert num_useful(kit.model) == 1, "of a large model no second copy is made"


ORPHANS = """
import os, signal, sys, time
from medmo_core.inference import load
from medmo_core.inference.copies import Copies
sys.path.insert(0, sys.argv[2])
from test_copies import total
if __name__ == "__main__":
    kit = load(sys.argv[1], device="cpu")
    with Copies(kit.model, kit.processor, 2) as copies:
        print(next(copies.start(total, [(1,)]))[0], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_the_one_that_started_them(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS, encoding="utf-8")
    words = [sys.executable, str(script), str(checkpoint), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    process = int(ended.stdout)
    for _ in range(500):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail(f"process {process} outlives the one it worked for")
