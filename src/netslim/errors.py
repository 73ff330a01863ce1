"""The exception tree.

Every error that a user can cause derives from `NetslimError`; the command line prints its message
on one line::

    NetslimError
    ├── TraceError            the model could not be run or followed
    ├── ArgumentError         an argument is wrong: kind, range, spelling (also a ValueError)
    ├── PlanError             a budget or wish cannot be met, or a plan does not fit the model
    │   └── StaleGraphError   the model changed since it was traced
    ├── SurgeryError          a cut could not be carried out; the model is untouched
    ├── VerificationError     the pruned model is not equal to the silenced original
    ├── CheckpointError       a file is damaged, tampered with, or belongs to another model
    ├── ExportError           a model cannot be written for another runtime, or differs there
    ├── RecipeError           a recipe, override, model name or run folder is wrong
    ├── DisagreementError     ranks of a distributed run have come to different decisions
    ├── DataError             a data set is unknown, missing or damaged
    └── TrainingError         training cannot go on (for example a loss that is not finite)
"""

INTERRUPTED = 130  # the exit code of what a Ctrl-C has ended, as a shell says it


class NetslimError(Exception):
    """Base class of every error netslim raises on purpose.

    Example:
        >>> try:
        ...     netslim.Budget(cut_macs=1.5)
        ... except netslim.NetslimError as error:
        ...     print(error)
        cut_macs must be a number at least 0 and below 1, got 1.5
    """

    told_by_another = False  # in a distributed run: rank 0 raises it, too, and tells it


class TraceError(NetslimError):
    """The model could not be run on the example inputs, or could not be followed."""


class ArgumentError(NetslimError, ValueError):
    """An argument is of the wrong kind, out of range, misspelt, or at odds with another."""


class PlanError(NetslimError):
    """A plan cannot be made, or does not belong to the model it is applied to."""


class StaleGraphError(PlanError):
    """The model changed since its graph was traced."""


class SurgeryError(NetslimError):
    """A cut could not be carried out; the model is as it was."""


class VerificationError(NetslimError):
    """The pruned model does not equal the original with its removed channels silenced."""


class CheckpointError(NetslimError):
    """A checkpoint is damaged, tampered with, or belongs to another model."""


class ExportError(NetslimError):
    """A model cannot be written for another runtime, or does not compute the same there."""


class RecipeError(NetslimError):
    """A recipe, an override, a model name or a run folder is wrong."""


class DisagreementError(NetslimError):
    """The ranks of a distributed run do not agree, or are not in step; all of them stop."""


class DataError(NetslimError):
    """A data set is unknown, missing or damaged."""


class TrainingError(NetslimError):
    """Training cannot go on."""


__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "NetslimError",
    "PlanError",
    "RecipeError",
    "StaleGraphError",
    "SurgeryError",
    "TraceError",
    "TrainingError",
    "VerificationError",
]
