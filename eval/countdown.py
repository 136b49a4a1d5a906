"""Countdown, zero-shot. Columns: numbers and target, or input ("a,b,c") and output.

Without local rows: the last 500 of the public set (three or four numbers), which d1 (https://arxiv.org/abs/2504.12216)
kept from training. The paper's numbers are on 256 other problems, in a file of its own.
"""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows
from dllm_rl.scoring.countdown import read_row

DEFAULT = """\
Using only the numbers {numbers}, make an arithmetic expression that equals {target}. Use every number exactly once; \
you may use +, -, *, / and parentheses.

Think step by step between <reasoning> and </reasoning>. Then give the expression, and nothing else, between \
<answer> and </answer>."""

D1 = """\
Using only the provided numbers, create an arithmetic expression that evaluates to exactly the provided target number. \
You may use the operations +, -, *, and / as needed, but each number must be used exactly once. Think step-by-step. \
After reasoning, provide only your final expression inside \\boxed{{}} tags without including an equals sign or the \
target number. For example: \\boxed{{a + b * c}}Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{{...}}
</answer>

Numbers: [{numbers}]
Target: {target}"""

PROMPTS = {
    "default": [("user", DEFAULT)],
    # Zhao et al., https://arxiv.org/abs/2504.12216, released evaluation code; the answer begins with the tag.
    "d1": [("user", D1), ("assistant", "<reasoning>\n")],
}


class Task:
    """Problems of a local file, or the public ones."""

    name = "countdown"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        if self.data is not None:
            return read_rows(self.data)
        rows = read_rows("Jiayi-Pan/Countdown-Tasks-3to4", split="train[-500:]")
        return [{"numbers": row["nums"], "target": row["target"]} for row in rows]

    def prompt(self, example):
        numbers, target = read_row(example)
        fields = {"numbers": ", ".join(map(str, numbers)), "target": target}
        return [{"role": role, "content": text.format(**fields)} for role, text in PROMPTS[self.variant]]

    def score(self, example, completion):
        return score("countdown", completion, example)
