"""Every error onnxport raises on purpose, with the exit code its command ends with.

OnnxportError                      1   internal error
├── UsageError (ValueError)        2   wrong usage
├── CheckFailed                    3   a check that stands between a build and its users
│   ├── GateError                      a gate of `compare` failed
│   ├── ParityError                    answers differ from the original's by more than the bound
│   └── FusionError                    a graph that should have fused did not
├── Refused (ValueError)           4   the input was refused
│   ├── CheckpointError                a model that cannot be exported
│   │   └── NotApplicable              a precision that is not for this model; an export leaves it out where others remain
│   ├── BundleError                    a bundle that is damaged or of another format
│   ├── DataError                      a data file that cannot be used
│   └── TextError                      a text or token ids that the model cannot take
├── DeviceError (RuntimeError)     5   the device or provider is not available
├── OutputError (OSError)          6   the output could not be written
├── Cancelled                    130   a call was cancelled by its caller
└── GenerationTimeout (TimeoutError) 1 a call ran out of its time
"""


class OnnxportError(Exception):
    """Base of all errors; `exit_code` is the command's exit status."""

    exit_code = 1


class UsageError(OnnxportError, ValueError):
    """Wrong usage of a command or a call."""

    exit_code = 2


class CheckFailed(OnnxportError):
    """A check that stands between a build and its users."""

    exit_code = 3


class GateError(CheckFailed):
    """A gate of `compare` failed."""


class ParityError(CheckFailed):
    """Answers differ from the original's by more than the bound."""


class FusionError(CheckFailed):
    """A graph that should have fused did not."""


class Refused(OnnxportError, ValueError):
    """The input was refused."""

    exit_code = 4


class CheckpointError(Refused):
    """A model that cannot be exported."""


class NotApplicable(CheckpointError):
    """A precision that is not for this model; an export leaves it out where others remain."""


class BundleError(Refused):
    """A bundle that is damaged or of another format."""


class DataError(Refused):
    """A data file or array that cannot be used."""


class TextError(Refused):
    """A text or token ids that the model cannot take."""


class DeviceError(OnnxportError, RuntimeError):
    """The asked device or provider is not available."""

    exit_code = 5


class OutputError(OnnxportError, OSError):
    """The output could not be written."""

    exit_code = 6


class Cancelled(OnnxportError):
    """A call was cancelled by its caller."""

    exit_code = 130


class GenerationTimeout(OnnxportError, TimeoutError):
    """A call ran out of its time."""

    exit_code = 1


def one_line(error: BaseException, longest: int = 300, deepest: bool = False) -> str:
    """An error's message on one line of at most `longest` characters; the name of its class where it has no message.

    deepest: the message of the error at the end of the chain of causes, for libraries that wrap the reason in pages of their own.
    """
    while deepest and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
