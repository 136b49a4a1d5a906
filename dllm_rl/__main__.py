"""``accelerate launch -m dllm_rl recipes/NAME.yaml``: what the start-up hook does, without the hook."""

from __future__ import annotations

import sys

from dllm_rl.cli import main, run_as_script

if __name__ == "__main__":
    is_recipe = len(sys.argv) > 1 and sys.argv[1].endswith((".yaml", ".yml"))
    sys.exit(run_as_script(sys.argv[1:]) if is_recipe else main(sys.argv[1:]))
