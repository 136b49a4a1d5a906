"""MATH-500 (Lightman et al., https://arxiv.org/abs/2305.20050), zero-shot. Columns: problem, answer."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """{problem}

Think step by step between <reasoning> and </reasoning>. Then give the final answer as \\boxed{{...}} between \
<answer> and </answer>."""

D1 = """\
You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final answer in a \
\\boxed{{}}.
Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{{...}}
</answer>" \n

{problem}"""

LLADA = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."

PROMPTS = {
    "default": [("user", DEFAULT)],
    # Zhao et al., https://arxiv.org/abs/2504.12216, released evaluation code, its lost quotation mark included.
    "d1": [("user", D1), ("assistant", "<reasoning>\n")],
    # OpenCompass, math_0shot_gen_11c4b5, with which LLaDA 1.5 was evaluated.
    "llada": [("user", LLADA)],
}


class Task:
    """The 500 problems."""

    name = "math500"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        return read_rows(self.data or "HuggingFaceH4/MATH-500", split="test")

    def prompt(self, example):
        turns = PROMPTS[self.variant]
        return [{"role": role, "content": text.format(problem=example["problem"])} for role, text in turns]

    def score(self, example, completion):
        return score("math500", completion, example)
