"""A signal is a request, kept until a run can be gone on with; a second one, or a worker's, ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from dllm_rl.training import stopping
from dllm_rl.training.stopping import StopAtWindowEnd, StopRequest


def _ended_by(child: Callable[[], None]) -> int:
    """Signal that ended a forked child; 0 if it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_is_noted_and_said_and_its_echo_is_no_second(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before, request = signal.getsignal(number), StopRequest()
    with request.heeded():
        assert request.signal is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == number
    assert signal.getsignal(number) == before
    assert (
        capfd.readouterr().err
        == f"\n{number.name}: stopping at the end of this rollout's updates; once more to stop at once\n"
    )


def test_a_second_signal_ends_the_process_unless_all_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_ONE_REQUEST", 0.0)

    def twice(finish: bool) -> None:
        request = StopRequest()
        with request.heeded():
            os.kill(os.getpid(), signal.SIGINT)
            if finish:
                request.finish()
            os.kill(os.getpid(), signal.SIGTERM)

    assert _ended_by(lambda: twice(finish=False)) == -signal.SIGTERM
    assert _ended_by(lambda: twice(finish=True)) == 0


def test_the_death_of_a_launcher_that_was_asked_to_stop_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_ONE_REQUEST", 0.0)

    def orphan() -> None:
        """Its parent passes SIGINT on and dies of it, which the kernel tells by SIGTERM."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            request = StopRequest()
            with request.heeded():
                os.kill(os.getpid(), signal.SIGINT)
                os.write(writing, b"!")
                while os.getppid() == parent:
                    os.sched_yield()
                os.kill(os.getpid(), signal.SIGTERM)  # the launcher's death
                first = request.signal == signal.SIGINT
                os.write(told, b"lives" if first else b"wrong")
                os.kill(os.getpid(), signal.SIGTERM)
            os.write(told, b" on")
            os._exit(0)
        os.read(reading, 1)

    hearing, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        parent = os.getpid()
        orphan()
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(told)
    with os.fdopen(hearing) as said:
        assert said.read() == "lives"


def test_a_forked_worker_is_ended_by_its_pools_signal() -> None:
    request = StopRequest()
    with request.heeded():
        assert _ended_by(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    assert request.signal is None


def test_outside_of_the_main_thread_signals_stay_as_they_are() -> None:
    found: list[object] = []

    def run() -> None:
        with StopRequest().heeded():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_training_stops_with_a_checkpoint_at_the_first_end_of_a_window_once_any_process_was_asked(
    tmp_path: Path,
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    asked_elsewhere = False
    request = StopRequest()
    stop = StopAtWindowEnd(request, 3, lambda here: here or asked_elsewhere)

    def at(update: int, event: str = "on_step_end") -> tuple[bool, bool]:
        control = TrainerControl()
        getattr(stop, event)(arguments, TrainerState(global_step=update), control)
        return control.should_training_stop, control.should_save

    assert [at(update) for update in range(7)] == [(False, False)] * 7
    asked_elsewhere = True
    assert at(0, "on_evaluate") == (False, False)
    assert at(4) == at(5) == (False, False)
    assert at(6, "on_save") == (True, False)  # the checkpoint was made just now
    asked_elsewhere = False
    assert at(9, "on_evaluate") == (True, True)
    control = TrainerControl(should_save=True)
    stop.on_epoch_end(arguments, TrainerState(global_step=9), control)
    assert not control.should_save
    stop.on_train_end(arguments, TrainerState(global_step=9), control)
    with request.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
    assert request.signal is None  # saved already: there is nothing left to ask for

    asked = StopRequest()
    asked.signal = signal.SIGTERM
    again = StopAtWindowEnd(asked, 1, lambda here: here)
    control = TrainerControl()
    again.on_step_end(arguments, TrainerState(global_step=1), control)
    assert control.should_training_stop and control.should_save
