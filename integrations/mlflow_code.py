"""What MLflow logs as a model's code, and runs as it loads the model ("models from code")."""

from mlflow.models import set_model

from onnxport.integrations.mlflow import OnnxportModel

set_model(OnnxportModel())
