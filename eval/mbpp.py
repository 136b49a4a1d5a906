"""MBPP (Austin et al., https://arxiv.org/abs/2108.07732), test split, zero-shot with the tests in the prompt.

Columns: text (or prompt), test_list; test_setup_code or test_imports; code. Answers are run, in a sandbox:
docs/code.md.
"""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """\
{text} Your code should pass these tests:

{tests}

Answer with the code in one ```python block."""

LLADA = """\
You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:

 {tests}
"""

PROMPTS = {
    "default": [("user", DEFAULT)],
    # OpenCompass, the harness of LLaDA's evaluation, without its three examples.
    "llada": [("user", LLADA)],
}

ALLOW_UNSANDBOXED = False
"""True: run answers with your own rights where the host offers no isolation."""


class Task:
    """The 500 test problems: task_id 11 to 510. A local file is taken as it is, unless it is the whole release."""

    name = "mbpp"
    version = 1

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        rows = read_rows(self.data or "google-research-datasets/mbpp", name="full", split="test")
        return [row for row in rows if 11 <= row["task_id"] <= 510] if len(rows) == 974 else rows

    def prompt(self, example):
        text = example["text"] if "text" in example else example["prompt"]
        fields = {"text": text, "tests": "\n".join(example["test_list"])}
        return [{"role": role, "content": turn.format(**fields)} for role, turn in PROMPTS[self.variant]]

    def score(self, example, completion):
        return score("mbpp", completion, example, allow_unsandboxed=ALLOW_UNSANDBOXED)
