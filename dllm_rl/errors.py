"""The errors a user can meet. Each message says what was found, where, what was expected and what to do."""

from __future__ import annotations


class DllmRlError(Exception):
    """Base of every error raised on purpose. Subclasses also inherit the standard exception they refine; all pickle."""


class RecipeError(DllmRlError, ValueError):
    """A recipe, an override or a command-line argument is wrong."""


class MissingSettingError(RecipeError):
    """What a recipe names needs something outside of it, such as an environment variable, that is not set."""


class DataError(DllmRlError, ValueError):
    """A dataset, a row or a prompt cannot be used as it is."""


class RewardError(DllmRlError, RuntimeError):
    """A reward function raised, returned the wrong thing or did not return in time."""


class SandboxError(DllmRlError, RuntimeError):
    """Untrusted code cannot be run here, because the host offers no isolation or the sandbox did not start."""


class ModelContractError(DllmRlError, TypeError):
    """A model, a tokenizer or a tensor does not satisfy what this library assumes of it."""


class CheckpointError(DllmRlError, RuntimeError):
    """A folder of weights is missing, incomplete or belongs to something else; or it could not be written."""


class RunStoppedError(DllmRlError, RuntimeError):
    """A run was asked to stop by a signal, and did, with a checkpoint that it can go on from."""


class DivergenceError(DllmRlError, ArithmeticError):
    """Training produced a number that is not finite."""


def one_line(error: BaseException) -> str:
    """What another library's error says, on one line."""
    return " ".join(str(error).split())
