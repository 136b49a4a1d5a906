"""The page on rewards: its files work as they stand, its sections are valid, what it lists is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dllm_rl.recipe.rewards import make_panel
from dllm_rl.recipe.schema import RewardSection
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.shipped import shipped_root
from tests.rewards.server import serving

PAGE = (Path(__file__).resolve().parents[2] / "docs/rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def written(folder: Path, number: int) -> str:
    text = blocks("python")[number]
    name = text.splitlines()[0].removeprefix("# ")
    (folder / name).write_text(text)
    return f"{folder}/{name}"


def test_a_function_of_one_s_own(tmp_path: Path) -> None:
    panel = RewardPanel.load([f"{written(tmp_path, 0)}:brief_and_right"])
    texts = ["42", "x" * 200 + "42", "41"]
    assert panel(["p"] * 3, texts, [[]] * 3, {"answer": ["42"] * 3}).total == [1.0, 0.5, 0.0]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert panel([[]] * 3, chats, [[]] * 3, {"answer": ["42"] * 3}).total == [1.0, 0.5, 0.0]


def test_the_sections() -> None:
    shaped, normalized = (
        make_panel(RewardSection(**yaml.safe_load(text)["reward"]), Path()) for text in blocks("yaml")
    )
    right = "<reasoning>r</reasoning><answer>42</answer>"
    made = {"forwards": [5, 1, 5], "gen_length": [8] * 3}
    columns = {"answer": ["42"] * 3}
    found = shaped(["p"] * 3, [right, "<answer>42</answer>", right], [[]] * 3, columns, rollout=made)
    assert found.total == [2.5 * 4 / 8, 0.0, 2.5 * 4 / 8]
    found = normalized(["p"] * 3, [right, "41", right], [[]] * 3, columns, rollout=made, group_size=3)
    assert sum(found.total) == pytest.approx(0, abs=1e-12)
    assert found.total == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)  # right and slow, wrong and fast: alike


def test_a_judge_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("DLLM_RL_JUDGE_URL", server.url)
        monkeypatch.setenv("DLLM_RL_JUDGE_MODEL", "m")
        server.judge = lambda question: f"Verdict: {int('agree with 42' in question and 'is 42' in question)}"
        panel = RewardPanel.load([f"{written(tmp_path, 1)}:agrees"])
        assert panel(["p"] * 2, ["it is 42", "it is 41"], [[]] * 2, {"answer": ["42"] * 2}).total == [1.0, 0.0]
        assert server.asked("/v1/chat/completions")[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_every_shipped_function_is_listed() -> None:
    for file in (shipped_root() / "rewards").glob("*.py"):
        (row,) = re.findall(rf"^\| {re.escape(file.name)} \|.*$", PAGE, flags=re.MULTILINE)
        for name in re.findall(r"^def ([a-z]\w*)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert f"`{name}`" in row
