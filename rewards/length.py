"""Rewards for completions that end in time. A completion's length is that of its ids, end of text included."""

BUFFER = 64
"""Positions at the end of the canvas where a completion begins to cost."""


def overlong(completion_ids, gen_length, **columns):
    """0 for room to spare, falling to -1 over the last 64 positions; -1 for a completion that fills the canvas.

    Source: Yu et al., DAPO, https://arxiv.org/abs/2503.14476, eq. 13. There longer than the limit costs 1; here a
    canvas cannot be overrun, and one filled to its last position was cut short, or just ended in time.
    """
    return [_overlong(len(ids), longest) for ids, longest in zip(completion_ids, gen_length, strict=True)]


def _overlong(length, longest):
    buffer = min(BUFFER, longest)
    return min(0.0, (longest - buffer - length) / buffer)
