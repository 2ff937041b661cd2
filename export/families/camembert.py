"""CamemBERT: RoBERTa with another vocabulary."""

from onnxport.export.families.roberta import roberta

FAMILY = roberta("camembert", "Camembert")
