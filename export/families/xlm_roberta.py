"""XLM-RoBERTa: RoBERTa with another vocabulary."""

from onnxport.export.families.roberta import roberta

FAMILY = roberta("xlm-roberta", "XLMRoberta")
