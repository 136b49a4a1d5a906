"""Rewards for answers made in few forwards of the network, added to what says whether the answer is right.

Added, speed pays for wrong answers as well: keep the weight small. `reward.speed_exponent` multiplies instead, so that
only what is worth something gains. dUltra's recipe: weight 0.1.
"""

FORWARDS = 50
"""Forwards that cost one point."""


def fewer_forwards(completions, forwards, **columns):
    """Minus the forwards that made the completion, in units of 50.

    Source: the released code of dUltra; it counts steps that wrote something, here every forward counts.
    """
    return [-count / FORWARDS for count in forwards]
