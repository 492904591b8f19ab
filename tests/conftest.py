"""Where there is no GPU the Triton code of every room runs in Triton's interpreter; several processes on one machine.

The interpreter must be asked for before Triton is imported, so the variable is set before anything else.

Property tests draw the same examples every day (profile `ci`), so that a change alone can make them fail; `make fuzz`
draws new ones (profile `random`).
"""

import gc
import multiprocessing
import os
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

T = TypeVar("T")
GRACE_S = 3
"""Once a process has failed, the others have this long to say why they did."""


@pytest.fixture(name="run_processes")
def give_run_processes() -> Callable[..., list[Any]]:
    """Hand out `run_processes`."""
    if torch.cuda.is_available():
        pytest.skip("autograd beside a GPU cannot go on in a forked process")
    return run_processes


def run_processes(function: Callable[[], T], world_size: int = 2, *, timeout_s: float = 120) -> list[T]:
    """Call `function` in forked processes that `distributed.connect` joins, as it does under torchrun.

    A fork has everything imported already, and closures and patches of the test are at hand in it.

    Args:
        function: called without arguments in each process; what it returns is pickled.
        world_size: processes, of one thread each.
        timeout_s: seconds for all of them together.

    Returns:
        What each process returned, by rank.

    Raises:
        The error of a process, with the traceback of every process that failed in its notes.
        TimeoutError: a process had no answer in time.
    """
    # The meeting place is ours, as it is the launcher's under torchrun: it picks a free port itself.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    sys.stdout.flush(), sys.stderr.flush()  # else each process has the unwritten text too
    readers: dict[Connection, int] = {}
    processes = []
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    try:
        for rank in range(world_size):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(function, rank, world_size, store.port, writer))
            with warnings.catch_warnings():  # of threads at a fork: those of the test runner, which we do not touch
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            readers[reader] = rank
            processes.append(process)
        deadline = time.monotonic() + timeout_s
        while readers:
            ready = wait(list(readers), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for reader in [reader for reader in readers if reader in ready]:
                rank = readers.pop(reader)
                try:
                    results[rank] = _receive(reader, f"process {rank} of {world_size}", processes[rank])
                except BaseException as error:
                    errors.append(error)
                    deadline = min(deadline, time.monotonic() + GRACE_S)
    finally:
        for process in processes:
            process.kill()  # those that have answered are gone
            process.join()
    if errors:
        # Torch's errors of a lost connection are RuntimeErrors, and mostly the echo of another process's end.
        first = min(errors, key=lambda error: isinstance(error, RuntimeError))
        for other in errors:
            for note in other.__notes__ if other is not first else ():
                first.add_note(note)
        raise first
    if readers:
        raise TimeoutError(f"no answer in {timeout_s:g} s from process {sorted(readers.values())}")
    return [results[rank] for rank in range(world_size)]


def _receive(reader: Connection, name: str, process: Any) -> Any:
    """Return what a process answered, or raise its error with a note of where."""
    try:
        error, value, told = pickle.loads(reader.recv_bytes())
    except EOFError:
        process.join(5)
        error, value, told = None, None, f"status {process.exitcode}, without an answer"
    if told:
        error = error or RuntimeError(f"{name}: {told}")
        error.add_note(f"In {name}:\n{told}")
        raise error
    return value


def _answer(function: Callable[[], Any], rank: int, world_size: int, port: int, writer: Connection) -> NoReturn:
    """Call the function in a forked process, send what came of it and end at once."""
    # What the test runner has left to collect, such as a process group, may wait for threads that stayed behind.
    gc.freeze()
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    # The threads of OpenMP's pool stayed behind: whoever asked for a second one would wait for ever.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda num_threads: None
    try:
        answer = pickle.dumps((None, function(), ""))
    except BaseException as error:  # an outcome of pytest too
        answer = _failure(error)
    writer.send_bytes(answer)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)


def _failure(error: BaseException) -> bytes:
    """Pickle an error with its traceback; without the error where it cannot be rebuilt."""
    told = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps((error, None, told))
        pickle.loads(pickled)
    except Exception:
        return pickle.dumps((None, None, told))
    return pickled


@pytest.fixture
def named_dicom(tmp_path: Path) -> Path:
    """A 40 x 60 slice of a patient with a name, who must never be named again."""
    path = tmp_path / "scan.dcm"
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
    return path


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """A volume of five slices of 32 x 48 px."""
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).integers(-200, 200, (32, 48, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "volume.nii.gz")
    return tmp_path / "volume.nii.gz"
