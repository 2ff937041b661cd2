"""Every error onnxport raises on purpose, with the exit code its command ends with.

OnnxportError                      1   internal error
├── UsageError (ValueError)        2   wrong usage
├── CheckFailed                    3   a check that stands between a build and its users
│   ├── GateError                      a gate of `compare` failed
│   ├── ParityError                    answers differ from the original's by more than the bound
│   └── FusionError                    a graph that should have fused did not
├── Refused (ValueError)           4   the input was refused
│   ├── CheckpointError                a model that cannot be exported
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
    exit_code = 2


class CheckFailed(OnnxportError):
    exit_code = 3


class GateError(CheckFailed):
    pass


class ParityError(CheckFailed):
    pass


class FusionError(CheckFailed):
    pass


class Refused(OnnxportError, ValueError):
    exit_code = 4


class CheckpointError(Refused):
    pass


class BundleError(Refused):
    pass


class DataError(Refused):
    pass


class TextError(Refused):
    pass


class DeviceError(OnnxportError, RuntimeError):
    exit_code = 5


class OutputError(OnnxportError, OSError):
    exit_code = 6


class Cancelled(OnnxportError):
    exit_code = 130


class GenerationTimeout(OnnxportError, TimeoutError):
    exit_code = 1
