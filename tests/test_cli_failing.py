"""How one of several processes says what ended it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RAISED = "see the {} of this rank above"


@pytest.mark.parametrize(
    ("raised", "code", "said", "summary"),
    [
        ("DataError('no rows')", 2, "dllm-rl: rank 1: no rows", f"DataError: {RAISED.format('line')}"),
        ("ValueError('odd')", 1, "ValueError: odd", f"ValueError: {RAISED.format('traceback')}"),
        ("RuntimeError('gloo: Connection closed by peer [::1]')", 1, "dllm-rl: rank 1: lost another", "lost the conn"),
    ],
)
def test_it_is_said_once_and_the_summary_points_to_it(
    raised: str, code: int, said: str, summary: str, tmp_path: Path
) -> None:
    program = f"""
        import atexit, sys, time
        from dllm_rl import cli
        from dllm_rl.cli import failing
        from dllm_rl.errors import DataError
        failing._SECONDS_FOR_THE_FIRST, failing._SECONDS_TO_LEAVE = 0.0, 0.2
        atexit.register(time.sleep, 600)  # a process that does not get away
        def fails(arguments):
            raise {raised}
        cli._check = lambda arguments: failing.as_one_of_several(lambda: fails(arguments))
        sys.exit(cli.main(["check", "x.yaml"]))
    """
    several = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | several,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.count(said) == 1
    assert ("Traceback" in done.stderr) == (said == "ValueError: odd")
    told = json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"]
    assert told.startswith(summary)
