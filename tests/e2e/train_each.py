"""Run several recipes in one process (or one per rank): start-up is most of a tiny run's time."""

from __future__ import annotations

import sys

import dllm_rl

if __name__ == "__main__":
    for path in sys.argv[1:]:
        dllm_rl.train(path)
