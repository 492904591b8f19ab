"""What a user can act on: one base class, whatever else the error is."""

import errno
import os

import pytest

from medmo_core.data.images.loaded import ImageError
from medmo_core.data.records.faults import Fault, RecordError
from medmo_core.data.records.sample import Answer
from medmo_core.errors import USER_ERRORS, BadStep, InputError, UserError, exit_status, user_message
from medmo_core.metrics.vqa import vqa_correct
from medmo_core.profile import CheckpointProfile


@pytest.mark.parametrize("kind", [InputError, BadStep, ImageError, RecordError])
def test_errors_of_a_user_are_value_errors_too(kind: type[Exception]) -> None:
    assert issubclass(kind, UserError) and issubclass(kind, ValueError)


def test_a_fault_of_the_program_is_none_of_a_user() -> None:
    assert not issubclass(ValueError, USER_ERRORS) and not issubclass(RuntimeError, USER_ERRORS)


def test_what_core_refuses_is_reported_as_a_users() -> None:
    with pytest.raises(USER_ERRORS, match="box"):
        raise RecordError([Fault("boxes[0]", "a box is empty")])
    with pytest.raises(UserError, match="frame is 'pixels'"):
        CheckpointProfile(frame="pixels")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [Answer("yesno", "perhaps"), Answer("choice", "kidney", choices=("liver", "spleen"))],
    ids=["yesno", "choice"],
)
def test_a_true_answer_that_cannot_be_scored_is_a_fault_of_the_data(answer: Answer) -> None:
    with pytest.raises(InputError, match="answer has the value"):
        vqa_correct("Yes.", answer)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("my.jsonl:3: no image (os error 2)"), "my.jsonl:3: no image (os error 2)"),
        (FileNotFoundError("no such folder; name one"), "no such folder; name one"),
        (ImportError("install the extra"), "install the extra"),
        (OSError(errno.ENOSPC, "x"), os.strerror(errno.ENOSPC)),
        (OSError(errno.EROFS, "x", "runs/a"), f"runs/a: {os.strerror(errno.EROFS)}"),
        (PermissionError(errno.EACCES, "x", b"runs/a"), f"runs/a: {os.strerror(errno.EACCES)}"),
        (Exception("I/O error: something (os error 28)"), os.strerror(28)),  # as safetensors and tokenizers say it
        (BrokenPipeError(errno.EPIPE, "x"), None),
        (OSError(errno.EADDRINUSE, "x"), None),
        (OSError("no number"), None),
        (ValueError("a bug"), None),
    ],
)
def test_what_is_user_message_an_error(error: Exception, told: str | None) -> None:
    assert user_message(error) == told


def test_the_status_of_a_command_says_whose_the_error_is(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: Exception) -> int:
        raise error

    assert exit_status(lambda: 0) == 0 and exit_status(lambda: 1) == 1
    assert exit_status(lambda: fails(InputError("--out runs: is a file"))) == 2
    assert capsys.readouterr().err == "error: --out runs: is a file\n"
    with pytest.raises(KeyError, match="round_9"):
        exit_status(lambda: fails(KeyError("round_9")))
