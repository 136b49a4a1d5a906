"""A run's folder is one process's at a time, can be written to or is refused at once, and gets its end whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.output import RunFolder, held, put_in_place


def test_a_folder_is_made_held_and_let_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    for _ in range(2):
        with held(folder):
            assert folder.path.is_dir()


def test_a_folder_that_another_process_writes_to_is_refused_and_says_by_which(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ready, ready_here = os.pipe()
    finish_there, finish = os.pipe()
    other = os.fork()
    if other == 0:
        with held(folder):
            os.write(ready_here, b"!")
            os.read(finish_there, 1)
            os._exit(0)  # without letting go: the lock goes with the process
    os.read(ready, 1)
    with (
        pytest.raises(RecipeError, match=f"process {other} is writing to {tmp_path}; wait until it ends"),
        held(folder),
    ):
        raise AssertionError("two processes hold one folder")
    os.write(finish, b"!")
    os.waitpid(other, 0)
    with held(folder):
        pass


def test_only_the_main_process_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with held(RunFolder(tmp_path / "mine")):
        assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("place", ["/proc/none/run", "a file/run"])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / place
    message = r"^output: .*/run cannot be written to \(.+\); choose another output$"
    with pytest.raises(RecipeError, match=message), held(RunFolder(path)):
        raise AssertionError(f"{path} was made")


def test_a_finished_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    made, final = tmp_path / ".final.writing", tmp_path / "final"
    for text in ("first", "second"):
        made.mkdir()
        (made / text).write_text(text)
        put_in_place(made, final)
        assert [part.name for part in tmp_path.iterdir()] == ["final"]
        assert [file.read_text() for file in final.iterdir()] == [text]
