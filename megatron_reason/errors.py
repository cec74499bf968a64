"""Everything that can go wrong in a way the user can repair.

    ReasonError
    +-- ConfigError        (ValueError)    a key, a value, or two that contradict each other
    +-- DataError          (ValueError)    rows missing, too few, or not what they claim to be
    |   +-- SchemaError                    a table without the columns its kind promises
    +-- TopologyError      (ValueError)    a parallel layout that cannot be built
    +-- ConversionError    (ValueError)    HF <-> Megatron: a field or tensor no rule covers
    +-- CheckpointError    (RuntimeError)  nothing to resume from, or what must not be resumed
    +-- GenerationError    (RuntimeError)  the engine cannot do, or did not do, what was asked
    |   +-- EngineDiedError                its process died or hung; a new one may be started
    +-- RewardError        (RuntimeError)  verification failed as a whole, not for one answer
    +-- NumericsError      (ArithmeticError) non-finite gradients beyond the allowed number
    +-- PlatformError      (RuntimeError)  the device or a library cannot do what was asked
    +-- LaunchError        (RuntimeError)  processes or jobs that did not start or did not end well
    |   +-- NodeLostError                  a machine went away; the same job may go on elsewhere
    +-- StoppedError       (RuntimeError)  stopped on request, with everything saved

A message has four parts: where, what, the values, the way out. Not here: errors of our own making,
which are assertions with a message.
"""

import errno


class ReasonError(Exception):
    """Base of all errors a user can repair.

    Args:
        where: file, stage or object the error is about ("examples/oxa.yaml:31 train.parallel.tp").
        what: one or two sentences: what is wrong, with the offending values.
        way_out: what to type or change next.
    """

    exit_code = 1
    """What the program ends with."""
    on_every_rank = False
    """Whether all ranks of a run raise it at the same point, and may still finish work together."""

    def __init__(self, where: str, what: str, way_out: str) -> None:
        super().__init__(where, what, way_out)
        self.where = where
        self.what = what
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{type(self).__name__}  {self.where}\n  {self.what}\n  {self.way_out}"


class ConfigError(ReasonError, ValueError):
    """A configuration key or value that cannot be used."""


class DataError(ReasonError, ValueError):
    """Input rows that cannot be used, or too few of them."""


class SchemaError(DataError):
    """A table that lacks the columns its kind promises."""


class TopologyError(ReasonError, ValueError):
    """A parallel layout that the model or the world size does not allow."""


class ConversionError(ReasonError, ValueError):
    """A checkpoint field or tensor that no conversion rule covers."""


class CheckpointError(ReasonError, RuntimeError):
    """A checkpoint that is missing, incomplete, or belongs to another run."""


class GenerationError(ReasonError, RuntimeError):
    """The generation engine died, hung, or returned something unusable."""


class EngineDiedError(GenerationError):
    """The engine's process died, or was killed because it hung; a new one may be started."""


class RewardError(ReasonError, RuntimeError):
    """Verification as a whole failed (single answers get a Verdict instead)."""


class NumericsError(ReasonError, ArithmeticError):
    """Losses or gradients stayed non-finite beyond the allowed number of updates."""


class PlatformError(ReasonError, RuntimeError):
    """The device or an installed library cannot do what was asked."""


class LaunchError(ReasonError, RuntimeError):
    """Worker processes or cluster jobs that did not start or did not end well."""


class NodeLostError(LaunchError):
    """A machine of a job went away, or could not be reached; the same job may go on elsewhere."""

    exit_code = 75
    """As for `StoppedError`."""


class StoppedError(ReasonError, RuntimeError):
    """Work stopped because a signal asked for it; the same command goes on."""

    exit_code = 75
    """What sysexits calls a temporary failure, and schedulers take as "start me again"."""


def of_system(error: OSError) -> PlatformError:
    """The same error for the user: a full disk, a folder that went away, a file without access."""
    # A rename names what it renames first, which is a temporary file.
    place = error.filename2 or error.filename
    is_storage = place is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
    mend = "Make room, or mend the disk or its permissions; the" if is_storage else "The"
    return PlatformError(
        str(place or "the operating system"),
        f"{error.strerror or error}.",
        f"{mend} same command goes on from the last checkpoint.",
    )
