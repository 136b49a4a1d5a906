"""Rewards for programs: 1 when every test passes, else 0. Completions are run, in a sandbox: docs/code.md."""

from dllm_rl import evaluate
from dllm_rl.scoring.answers import text_of

ALLOW_UNSANDBOXED = False
"""True: run completions with your own rights where the host offers no isolation."""

MBPP = ("test_list", "test_setup_code", "test_imports", "code")


def mbpp(completions, **columns):
    """For rows as MBPP has them. Columns: test_list; test_setup_code, test_imports and code if there are any."""
    given = [name for name in MBPP if name in columns]
    rows = [{name: columns[name][place] for name in given} for place in range(len(completions))]
    return _passes("mbpp", completions, rows)


def humaneval(prompts, completions, entry_point, test, **columns):
    """For rows as HumanEval has them, whose prompt is the code to continue. Columns: entry_point, test."""
    rows = [
        {"prompt": text_of(prompt), "entry_point": name, "test": source}
        for prompt, name, source in zip(prompts, entry_point, test, strict=True)
    ]
    return _passes("humaneval", completions, rows)


def _passes(task, completions, rows):
    texts = [text_of(completion) for completion in completions]
    return list(evaluate(task, texts, rows, allow_unsandboxed=ALLOW_UNSANDBOXED).scores)
