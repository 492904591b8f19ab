"""Folders of DICOM files, and DICOMDIR files: one record per series, a volume where it has a folder alone.

Patients and series are counted in the order in which they come; what their headers say of persons is read for telling
them apart and reaches no record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..data.images.dicom import is_dicom
from ..data.images.loaded import silent_libraries
from ..errors import InputError
from ..optional import import_optional
from .outcome import Job, LeftOut, Outcome, Record

QUESTION = "Which imaging modality is this?"
TAGS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "Modality", "Rows", "NumberOfFrames")


@dataclass(frozen=True)
class _File:
    """One file, its series and its place in it."""

    path: Path
    patient: str
    series: str
    number: int
    modality: str


def convert_dicom_folder(job: Job) -> Iterator[Outcome]:
    """Yield a record per series. Its question is the usual one of the modality unless the job has another.

    Raises:
        InputError: there is no DICOM file.
    """
    series: dict[str, list[_File]] = defaultdict(list)
    folders: dict[Path, set[str]] = defaultdict(set)
    patients: dict[str, int] = {}
    for path in _files(job.source):
        found = _read(path, job)
        if isinstance(found, LeftOut):
            yield found
            continue
        series[found.series].append(found)
        folders[path.parent].add(found.series)
        patients.setdefault(found.patient, len(patients) + 1)
    if not series:
        raise InputError(f"{job.source}: no DICOM image in it; expected a DICOMDIR file or a folder of DICOM files")
    name = job.pictures.resolve().name
    for number, files in enumerate(series.values(), start=1):
        files.sort(key=lambda file: (file.number, file.path.name))
        parents = {file.path.parent for file in files}
        is_alone = len(files) > 1 and len(parents) == 1 and len(folders[files[0].path.parent]) == 1
        shown = files[0].path.parent if is_alone else files[len(files) // 2].path
        if len(files) > 1 and not is_alone:
            what = f"{len(files) - 1} slices of the series of {_name(shown, job)}"
            reason = "its folder holds other series too; alone in a folder it is shown as a volume"
            yield LeftOut(what, reason, is_part=True)
        modality = files[0].modality
        if not modality and job.question is None:
            yield LeftOut(_name(shown, job), "its header states no modality to ask for")
            continue
        record: Record = {
            "id": f"{name}:series-{number}",
            "image": {"path": _name(shown, job), **({"modality": modality} if modality else {})},
            "question": job.question or QUESTION,
            "group": f"{name}:patient-{patients[files[0].patient]}",
        }
        yield {**record, "answer": modality} if job.question is None else record


def _name(path: Path, job: Job) -> str:
    return path.relative_to(job.pictures).as_posix()


def _files(source: Path) -> Iterator[Path]:
    if source.is_dir():
        index = next((path for path in source.iterdir() if path.name.upper() == "DICOMDIR"), None)
        if index is None:
            yield from (path for path in sorted(source.rglob("*")) if path.is_file() and is_dicom(path))
            return
        source = index
    pydicom: Any = import_optional("pydicom", "medical", f"{source}: reading DICOM")
    try:
        with silent_libraries():
            records = pydicom.dcmread(source, force=False).DirectoryRecordSequence
        names = [record.get("ReferencedFileID") for record in records]
        parts = [[name] if isinstance(name, str) else list(name) for name in names if name]
    except Exception as error:  # what the header holds must not reach the message
        raise InputError(f"{source}: not a readable DICOMDIR ({type(error).__name__})") from None
    # Of each part the last name: a hostile index leads nowhere else.
    yield from (source.parent.joinpath(*(PurePath(str(part)).name for part in each if part != "..")) for each in parts)


def _read(path: Path, job: Job) -> _File | LeftOut:
    pydicom: Any = import_optional("pydicom", "medical", f"{path}: reading DICOM")
    name = _name(path, job) if path.is_relative_to(job.pictures) else path.name
    if not path.is_file():
        return LeftOut(name, "is listed, but there is no such file")
    try:
        with silent_libraries():
            dataset = pydicom.dcmread(path, specific_tags=list(TAGS), stop_before_pixels=True)
            if "Rows" not in dataset:
                return LeftOut(name, "holds no image (a report, plan or index?)")
            texts = [str(dataset.get(tag) or "") for tag in TAGS[:3]]
            number, modality = int(dataset.get("InstanceNumber") or 0), str(dataset.get("Modality") or "")
            frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception as error:  # what the header holds must not reach the message
        return LeftOut(name, f"is no readable DICOM file ({type(error).__name__})")
    patient, study, series = texts
    # A file of several frames is a volume by itself.
    return _File(path, patient or study or name, name if frames > 1 or not series else series, number, modality)
