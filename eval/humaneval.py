"""HumanEval (Chen et al., https://arxiv.org/abs/2107.03374), zero-shot. Columns: prompt, entry_point, test.

Answers are run, in a sandbox: docs/code.md.
"""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """\
Complete this Python function. Answer with the whole function in one ```python block.

```python
{prompt}```"""

PROMPTS = {
    "default": [("user", DEFAULT)],
    # OpenCompass, humaneval_gen_8e312c.
    "llada": [("user", "Complete the following python code:\n{prompt}")],
    # Chen et al.: plain text to continue, for base models.
    "continue": "{prompt}",
}

ALLOW_UNSANDBOXED = False
"""True: run answers with your own rights where the host offers no isolation."""


class Task:
    """The 164 problems."""

    name = "humaneval"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        return read_rows(self.data or "openai/openai_humaneval", split="test")

    def prompt(self, example):
        turns = PROMPTS[self.variant]
        if isinstance(turns, str):
            return turns.format(prompt=example["prompt"])
        return [{"role": role, "content": text.format(prompt=example["prompt"])} for role, text in turns]

    def score(self, example, completion):
        return score("humaneval", completion, example, allow_unsandboxed=ALLOW_UNSANDBOXED)
