#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one call of less than 9 minutes on one card:
#
#     bash tools/benchmark/gpu.sh            # writes output/gpu/gpu.json and gpu.md
#     bash tools/benchmark/gpu.sh --tiny     # the same works on a CPU, in seconds; no figures
#
# OUT chooses another folder, PYTHON the interpreter (.venv's, else python3), which must have the
# package's requirements and Detectron2 (docs/install.md); with the extras benchmark and timm
# Hugging Face's DETR is measured beside. gpu.md goes into docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-.venv/bin/python}"
command -v "$python" >/dev/null || python=python3

sizes=(--config-file detr_panoptic_R50.yaml --device cuda --repeats 10)
formats=float32,tf32,bfloat16 batches=1,8 training=4,8,16 workers=2,4,8 compiled=(--compile)
against=()
"$python" -c "import timm, transformers" 2>/dev/null && against=(--against huggingface)
if [ "${1:-}" = --tiny ]; then
    sizes=(--config-file shapes/tiny.yaml --device cpu --repeats 1 --size 64x96 --kept 3 --segments 3)
    formats=float32,bfloat16 batches=1,2 training=1 workers=1 compiled=() against=()
fi
out="${OUT:-output/gpu}"
# Files are written after every measurement. Compiling comes last: nobody knows how long it takes.
exec timeout --preserve-status --signal=INT --kill-after=15 525 \
    "$python" -W ignore tools/benchmark "${sizes[@]}" --json "$out/gpu.json" --markdown "$out/gpu.md" \
    --then --work precision --dtype "$formats" \
    --then --work inference --dtype "$formats" --batch "$batches" "${against[@]}" \
    --then --work training --dtype "$formats" --batch 2 "${against[@]}" \
    --then --work training --dtype "$formats" --batch "$training" \
    --then --work loader --dtype bfloat16 --batch "${training##*,}" --workers "$workers" \
    --then --work profile --dtype bfloat16 \
    --then --work inference --dtype bfloat16 --batch "$batches" "${compiled[@]}"
