"""Scores and gradients through DistributedDataParallel, in a process of its own.

Gloo's worker threads need the interpreter's lock to let go of what they hold, and a process group that is taken down
joins them while it has that lock: now and then the two wait for each other. So this process ends without doing so.
"""

from __future__ import annotations

import os
import sys

import torch

from tests.models.test_scoring import assert_same_gradients, gradients, make_batch, make_model


def main(store: str) -> None:
    model = make_model()
    batch = make_batch(model)
    expected = gradients(model, model.token_logp(*batch))
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    wrapped = model.with_network(torch.nn.parallel.DistributedDataParallel(model.network))
    scores = wrapped.score(*batch, entropy=True)
    torch.testing.assert_close(scores.logp, model.token_logp(*batch))
    assert_same_gradients(gradients(model, scores.logp), expected)


if __name__ == "__main__":
    main(sys.argv[1])
    print("the same", flush=True)
    os._exit(0)
