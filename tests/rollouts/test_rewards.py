"""Loading reward functions, calling them, and refusing what they must not return."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.rewards import JUDGED, RewardFunction, RewardPanel, check_rewards, load_reward
from dllm_rl.shipped import import_file, locate, shipped_root

PROMPTS = ["one?", "two?", "three?"]
TEXTS = ["1", "22", "333"]
IDS = [[1], [2, 2], [3, 3, 3]]


def judge(
    *functions: Callable[..., Any], weights: Sequence[float] | None = None, time_limit: float = 60.0, **columns: Any
) -> Any:
    return RewardPanel(functions, weights, time_limit)(PROMPTS, TEXTS, IDS, columns)


def returning(value: Any, name: str = "f") -> RewardFunction:
    return RewardFunction(name, lambda **columns: value)


def test_functions_see_trl_keywords_and_every_column() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, answer: Any, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, answer=answer, **columns)
        return [0, 0, 0]

    judge(reward, answer=["a", "b", "c"], level=[1, 2, 3])
    assert seen == {
        "prompts": PROMPTS,
        "completions": TEXTS,
        "completion_ids": IDS,
        "answer": ["a", "b", "c"],
        "level": [1, 2, 3],
    }


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids"])
def test_no_column_stands_in_for_what_the_policy_wrote(name: str) -> None:
    with pytest.raises(RewardError, match=f"a column '{name}'.*rename"):
        RewardPanel([returning([1, 1, 1])])(PROMPTS, TEXTS, IDS, {name: ["gold"] * 3})


def test_total_is_the_weighted_sum_over_functions_that_apply() -> None:
    async def length(completions: list[str], **columns: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [None, *map(float, map(len, completions[1:]))]

    result = judge(returning([1, None, True], "first"), length, weights=[2.0, -0.5])
    assert result.per_function == {"first": [1.0, None, 1.0], "length": [None, 2.0, 3.0]}
    assert result.total == [2.0, -1.0, 0.5]


def test_default_weights_are_one() -> None:
    assert judge(returning([1, 2, 3], "a"), returning([0.5, 0.25, 0], "b")).total == [1.5, 2.25, 3.0]


def test_a_function_cannot_change_what_the_next_sees() -> None:
    def destructive(completions: list[str], **columns: Any) -> list[float]:
        completions.clear()
        return [0, 0, 0]

    def counting(completions: list[str], **columns: Any) -> list[float]:
        return [len(completions)] * 3

    assert judge(destructive, counting).total == [3.0, 3.0, 3.0]


def test_asynchronous_functions_run_together() -> None:
    meeting = asyncio.Event()

    async def waits(**columns: Any) -> list[float]:
        await meeting.wait()
        return [1, 1, 1]

    async def comes(**columns: Any) -> list[float]:
        meeting.set()
        return [1, 1, 1]

    assert judge(waits, comes).total == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned NoneType.*list of 3"),
        (1.0, "returned float"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "returned dict"),
        ([1.0, 1.0], "2 values for 3 rows"),
        ([1.0] * 4, "4 values for 3 rows"),
        ([1.0, math.nan, 1.0], "nan for row 1.*two"),
        ([1.0, 1.0, math.inf], "inf for row 2.*three"),
        ([-math.inf, 1.0, 1.0], "-inf for row 0.*one"),
        ([1.0, "1.0", 1.0], "'1.0' for row 1"),
        ([[1.0], 1.0, 1.0], "for row 0"),
        ([1.0, None, 1.0], "no reward function applies to row 1.*two"),
    ],
)
def test_bad_values_name_the_function_and_the_row(value: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        judge(returning(value, "mine.reward"))
    assert "mine.reward" in str(caught.value)


def test_an_error_in_a_function_names_it_and_the_line() -> None:
    def broken(**columns: Any) -> list[float]:
        return [1 / 0]

    with pytest.raises(
        RewardError, match=r"broken raised ZeroDivisionError.*rows 0 to 2.*test_rewards\.py:\d+ in broken"
    ):
        judge(broken)

    async def late(**columns: Any) -> list[float]:
        raise TimeoutError("the judge is away")

    with pytest.raises(RewardError, match=r"late raised .*TimeoutError: the judge is away"):
        judge(late)

    def leaves(**columns: Any) -> list[float]:
        sys.exit(3)

    with pytest.raises(RewardError, match=r"leaves raised .*SystemExit\(3\)"):
        judge(leaves)


def test_a_signature_without_columns_is_explained() -> None:
    def narrow(completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"narrow: .*end its signature with \*\*columns"):
        judge(narrow)

    def wants_more(completions: list[str], gold: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="wants_more: missing a required argument: 'gold'"):
        judge(wants_more)
    panel = RewardPanel([narrow_facts])
    panel.refuse_signatures([*JUDGED, "gold"])
    with pytest.raises(RewardError, match="narrow_facts: missing a required argument: 'gold'.*keywords prompts, compl"):
        panel.refuse_signatures(JUDGED)
    with pytest.raises(RewardError, match="a_gate: missing a required argument: 'gold'"):
        RewardPanel([returning([1.0])], gates=[RewardFunction("a_gate", wants_more)]).refuse_signatures(JUDGED)


def narrow_facts(prompts: Any, completions: Any, completion_ids: Any, gold: Any, *, forwards: Any) -> list[float]:
    return [0.0]


def test_hanging_functions_become_errors_that_say_where() -> None:
    release, stop = threading.Event(), list[bool]()

    def sleeps(**columns: Any) -> list[float]:
        release.wait()
        return [0, 0, 0]

    def spins(**columns: Any) -> list[float]:
        while not stop:
            pass
        return [0, 0, 0]

    async def awaits(**columns: Any) -> list[float]:
        await asyncio.Event().wait()
        return [0, 0, 0]

    try:
        for function in (sleeps, spins, awaits):
            with pytest.raises(
                RewardError, match=rf"{function.__name__} did not return within 0\.05 s at update 7.*rows 0 to 2"
            ):
                RewardPanel([function], time_limit=0.05)(PROMPTS, TEXTS, IDS, {}, update=7)
        with pytest.raises(RewardError, match="it is at .* in spins"):
            judge(spins, time_limit=0.05)
    finally:
        release.set()
        stop.append(True)


@pytest.mark.slow
def test_a_hang_that_holds_the_interpreter_ends_the_process_and_shows_where() -> None:
    program = """
        import re
        from dllm_rl.rollouts import calls
        from dllm_rl.rollouts.rewards import RewardPanel
        calls.GRACE_SECONDS = 0.5
        def explodes(**columns):
            return [float(re.match("(a+)+$", "a" * 60 + "b") is None)]
        RewardPanel([explodes], time_limit=0.5)(["p"], ["c"], [[0]], {})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "in explodes" in done.stderr
    first = next(line for line in done.stderr.splitlines() if line)
    assert first.startswith("dllm-rl: reward function explodes did not return in time (reward.workers runs it in a pro")


@pytest.mark.slow
def test_a_process_with_a_hanging_reward_exits_by_itself() -> None:
    program = """
        from dllm_rl.rollouts.rewards import RewardPanel
        def spins(**columns):
            while True:
                pass
        RewardPanel([spins], time_limit=0.2)(["p"], ["c"], [[0]], {})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "RewardError: reward function spins did not return" in done.stderr


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(RewardError, match="'answer': 2"):
        judge(returning([1, 1, 1]), answer=["a", "b"])


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "none; expected at least one"),
        ([returning([]), returning([])], None, "f, f; expected at least one, each once"),
        ([returning([])], [1.0, 2.0], "one finite number each"),
        ([returning([])], [math.nan], "one finite number each"),
    ],
)
def test_panels_that_make_no_sense(functions: list[RewardFunction], weights: list[float] | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RewardPanel(functions, weights)


REWARD = "def reward(completions, **columns):\n    return [{}] * len(completions)\nlimit = 3\n"


def test_files_are_found_beside_the_recipe_then_here_then_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, recipes = tmp_path / "here", tmp_path / "recipes"
    for folder, value in ((here, 1.0), (recipes, 2.0)):
        (folder / "rewards").mkdir(parents=True)
        (folder / "rewards/mine.py").write_text(REWARD.format(value))
    (here / "rewards/only_here.py").write_text(REWARD.format(3.0))
    monkeypatch.chdir(here)

    def value(reference: str) -> Any:
        return load_reward(reference, recipes).function(completions=["x"])

    assert value("rewards/mine.py:reward") == [2.0]
    assert value("rewards/only_here.py:reward") == [3.0]
    assert value(f"{here}/rewards/mine.py:reward") == [1.0]
    assert load_reward("rewards/mine.py:reward").function(completions=["x"]) == [1.0]
    assert load_reward("rewards/gsm8k.py:correctness", recipes).name == "gsm8k.correctness"
    assert locate("rewards/gsm8k.py", recipes) == shipped_root() / "rewards/gsm8k.py"
    with pytest.raises(RecipeError, match=r"no file rewards/none\.py .looked in .*recipes, .*here, "):
        load_reward("rewards/none.py:reward", recipes)


def test_a_file_runs_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass State:\n    calls: int = 0\n"
    )
    assert import_file(tmp_path / "mine.py") is import_file(tmp_path / "mine.py")


def test_dotted_paths() -> None:
    for reference in ("trl.rewards:accuracy_reward", "trl.rewards.accuracy_reward"):
        assert load_reward(reference).function.__name__ == "accuracy_reward"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py", "expected mine.py:function"),
        ("rewards/mine.py", "expected rewards/mine.py:function"),
        ("mine.py:rewrd", "no function 'rewrd' there. Did you mean reward"),
        ("mine.py:zzz", "It has reward"),
        ("mine.py:limit", "no function 'limit'"),
        ("broken.py:reward", "cannot be imported: NameError: name 'nothing'"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("no_such_module.f", "cannot import no_such_module"),
        ("f", "expected file.py:function"),
    ],
)
def test_references_that_name_nothing(reference: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD.format(1.0))
    (tmp_path / "broken.py").write_text("nothing\n")
    with pytest.raises(RecipeError, match=message):
        load_reward(reference, tmp_path)


def test_a_recipe_s_rewards_are_checked_on_hand_written_completions() -> None:
    rows = [{"prompt": "6 * 7?", "answer": "#### 42"}, {"prompt": "1 + 1?", "answer": "#### 2"}]
    panel = RewardPanel.load(["rewards/gsm8k.py:correctness", "rewards/format.py:soft"])
    given = check_rewards(panel, rows, ["<answer>42</answer>", "<reasoning>r</reasoning><answer>3</answer>"])
    assert given.per_function == {"gsm8k.correctness": [1.0, 0.0], "format.soft": [0.0, 1.0]}


def test_checking_rewards_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from dllm_rl.rollouts.rewards import RewardPanel, check_rewards, load_reward\n"
        "names = ['gsm8k.py:correctness', 'math.py:correctness', 'countdown.py:graded', 'sudoku.py:cells']\n"
        "[load_reward(f'rewards/{name}') for name in names]\n"
        "given = check_rewards(RewardPanel.load(['rewards/math.py:correctness']), [{'answer': '2'}], ['2'])\n"
        "assert given.per_function == {'math.correctness': [0.0]}\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
