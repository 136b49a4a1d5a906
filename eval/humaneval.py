"""HumanEval (Chen et al., https://arxiv.org/abs/2107.03374), zero-shot. Columns: prompt, entry_point, test.

Answers are run, in a sandbox: docs/code.md.
"""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

PROMPT = """\
Complete this Python function. Answer with the whole function in one ```python block.

```python
{prompt}```"""

ALLOW_UNSANDBOXED = False
"""True: run answers with your own rights where the host offers no isolation."""


class Task:
    """The 164 problems."""

    name = "humaneval"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data or "openai/openai_humaneval", split="test")

    def prompt(self, example):
        return [{"role": "user", "content": PROMPT.format(prompt=example["prompt"])}]

    def score(self, example, completion):
        return score("humaneval", completion, example, allow_unsandboxed=ALLOW_UNSANDBOXED)
