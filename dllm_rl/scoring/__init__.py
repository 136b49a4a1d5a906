"""Text in, number out: how right a completion is. Knows nothing of rewards or evaluation; both use it."""
