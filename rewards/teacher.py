"""How likely an autoregressive teacher finds a completion, over an endpoint such as `vllm serve MODEL` starts.

DLLM_RL_TEACHER_URL says where it is (http://localhost:8000/v1), DLLM_RL_TEACHER_MODEL what it is called there,
DLLM_RL_TEACHER_KEY is its key if it wants one. A batch has `reward.time_limit` seconds: raise it. docs/rewards.md.
"""

from dllm_rl.scoring.endpoint import Endpoint
from dllm_rl.scoring.teacher import Teacher

TEACHER = Teacher(Endpoint.from_environment("teacher"))


def log_likelihood(prompts, completions, **columns):
    """Mean log-probability of the completion's tokens, as the teacher cuts them; nats, at most 0.

    Source: the verifier reward of dUltra, weight 1, under Qwen2.5-Math-7B-Instruct or Qwen2.5-Coder-7B-Instruct.
    """
    return TEACHER(prompts, completions)
