"""GSM8K (Cobbe et al., https://arxiv.org/abs/2110.14168), test set, zero-shot. Columns: question, answer."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """{question}

Think step by step between <reasoning> and </reasoning>. Then give the final number, and nothing else, between \
<answer> and </answer>."""

D1 = """\
You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final answer in a \
\\boxed{{}}. \nRespond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{{...}}
</answer>

{question}"""

LLADA = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."

PROMPTS = {
    "default": [("user", DEFAULT)],
    # Zhao et al., https://arxiv.org/abs/2504.12216, released evaluation code; the answer begins with the tag.
    "d1": [("user", D1), ("assistant", "<reasoning>\n")],
    # OpenCompass zero-shot, the harness of LLaDA's evaluation; its published 78.6 was measured with four examples.
    "llada": [("user", LLADA)],
}


class Task:
    """The test problems."""

    name = "gsm8k"
    version = 1

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        return read_rows(self.data or "openai/gsm8k", name="main", split="test")

    def prompt(self, example):
        turns = PROMPTS[self.variant]
        return [{"role": role, "content": text.format(question=example["question"])} for role, text in turns]

    def score(self, example, completion):
        return score("gsm8k", completion, example)
