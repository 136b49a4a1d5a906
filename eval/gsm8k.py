"""GSM8K (Cobbe et al., https://arxiv.org/abs/2110.14168), test set. Columns: question, answer."""

from functools import cached_property
from pathlib import Path

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
    # OpenCompass, gsm8k_0shot_v2_gen_a58960. LLaDA's published numbers are from gsm8k_gen, which shows four examples.
    "llada": [("user", LLADA)],
    # The form of lm-eval's task gsm8k, plain text for base models. It draws five training problems for each question
    # (`dllm-rl lm-eval --tasks gsm8k` does); here they are the first five.
    "5-shot": "Question: {question}\nAnswer:",
}


class Task:
    """The test problems."""

    name = "gsm8k"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        return read_rows(self.data or "openai/gsm8k", name="main", split="test")

    def prompt(self, example):
        turns = PROMPTS[self.variant]
        if isinstance(turns, str):
            return "".join(self.solved) + turns.format(question=example["question"])
        return [{"role": role, "content": text.format(question=example["question"])} for role, text in turns]

    @cached_property
    def solved(self):
        """Five training problems as shown: of train.jsonl beside a local file, else the public ones."""
        beside = "openai/gsm8k" if self.data is None else Path(self.data).with_name("train.jsonl")
        rows = read_rows(beside, name="main", split="train[:5]")[:5]
        return [f"{PROMPTS[self.variant].format(question=row['question'])} {row['answer']}\n\n" for row in rows]

    def score(self, example, completion):
        if self.variant == "5-shot":
            completion = completion.partition("Question:")[0]  # what follows answers another question
        return score("gsm8k", completion, example)
