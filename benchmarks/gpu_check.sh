#!/usr/bin/env bash
# All that a GPU is to show (docs/gpu.md), in one run of under nine minutes: see `bash benchmarks/gpu_check.sh --help`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="tests${PYTHONPATH:+:$PYTHONPATH}" ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1
exec "${PYTHON:-.venv/bin/python}" -W ignore benchmarks/gpu_check.py "$@"
