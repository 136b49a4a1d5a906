"""MBPP (Austin et al., https://arxiv.org/abs/2108.07732), test split, with the tests in the prompt.

Columns: text (or prompt), test_list; test_setup_code or test_imports; code. Answers are run, in a sandbox:
docs/code.md.
"""

from functools import cached_property

from dllm_rl import score
from dllm_rl.errors import DataError
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """\
{text} Your code should pass these tests:

{tests}

Answer with the code in one ```python block."""

LLADA = """\
You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:

 {tests}  \n"""

SHOWN = 2, 3, 4
"""Problems that Austin et al. show, solved, before the one that is asked."""

PROMPTS = {
    "default": [("user", DEFAULT)],
    # OpenCompass, mbpp_gen_830460, with which LLaDA was evaluated, without its three examples.
    "llada": [("user", LLADA)],
    # Austin et al., as lm-eval's task mbpp has it: plain text for base models.
    "3-shot": """\
You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:

{tests}
[BEGIN]
""",
}

ALLOW_UNSANDBOXED = False
"""True: run answers with your own rights where the host offers no isolation."""


class Task:
    """The 500 test problems: task_id 11 to 510. A local file is taken as it is, unless it is the whole release."""

    name = "mbpp"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        rows = self._rows("test")
        return [row for row in rows if 11 <= row["task_id"] <= 510] if len(rows) == 974 else rows

    def prompt(self, example):
        turns = PROMPTS[self.variant]
        if isinstance(turns, str):
            return "".join(self.solved) + turns.format(**_fields(example, 3))
        return [{"role": role, "content": turn.format(**_fields(example))} for role, turn in turns]

    @cached_property
    def solved(self):
        """The three problems as shown: of the local file, if that is the whole release, else the public ones."""
        rows = {row["task_id"]: row for row in self._rows("prompt") if row["task_id"] in SHOWN}
        if len(rows) < len(SHOWN):
            raise DataError(f"{self.data}: prompt '3-shot' shows tasks 2, 3 and 4, which it lacks; give all 974 rows")
        asked = PROMPTS[self.variant]
        return [f"{asked.format(**_fields(rows[task], 3))}{rows[task]['code']}\n[DONE]\n\n" for task in SHOWN]

    def _rows(self, split):
        return read_rows(self.data or "google-research-datasets/mbpp", name="full", split=split)

    def score(self, example, completion):
        if self.variant == "3-shot":
            completion = completion.partition("[DONE]")[0]  # what follows answers another question
        return score("mbpp", completion, example, allow_unsandboxed=ALLOW_UNSANDBOXED)


def _fields(example, most=None):
    text = example["text"] if "text" in example else example["prompt"]
    return {"text": text, "tests": "\n".join(example["test_list"][:most])}
