#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one call of less than 9 minutes on one card:
#
#     bash tools/benchmark/gpu.sh            # writes output/gpu/gpu.json and gpu.md
#     bash tools/benchmark/gpu.sh --tiny     # the same steps on a CPU, in seconds; no figures
#
# OUT chooses another folder, PYTHON the interpreter (.venv's, else python3), which must have the
# package's requirements and Detectron2 (docs/install.md); with the extras benchmark and timm
# Hugging Face's DETR is measured beside. Put gpu.md into docs/benchmarks.md with
# --page docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-.venv/bin/python}"
command -v "$python" >/dev/null || python=python3
# What was measured before an interruption is written.
exec timeout --preserve-status --signal=INT --kill-after=15 525 \
    "$python" -W ignore tools/benchmark/gpu.py --output "${OUT:-output/gpu}" "$@"
