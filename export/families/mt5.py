"""mT5: T5 1.1 with another vocabulary."""

from onnxport.export.families.t5 import t5

FAMILY = t5("mt5", "MT5")
