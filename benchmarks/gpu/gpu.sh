#!/usr/bin/env bash
# On the machine with the GPU, in the root of the repository, no network needed: bash benchmarks/gpu/gpu.sh WHEELS [options]
# WHEELS: the folder of fetch_wheels.sh. Options: those of `python -m benchmarks.gpu`. Nothing that is installed changes.
set -euo pipefail
WHEELS=${1:?usage: gpu.sh WHEELS [options]}
PYTHON=${PYTHON:-python3} SITE=${SITE:-$(mktemp -d)}
"$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE" "$WHEELS"/*.whl
PYTHONPATH=$SITE exec "$PYTHON" -m benchmarks.gpu "${@:2}"
