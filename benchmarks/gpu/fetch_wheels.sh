#!/usr/bin/env bash
# Where there is a network: bash benchmarks/gpu/fetch_wheels.sh WHEELS; then carry that folder and the repository to the GPU.
# 23 wheels, some 40 MiB: what `benchmarks.gpu` needs beside torch and what commonly is installed with it (accelerate,
# tokenizers, pandas, pillow, ...). PYTHON_VERSION: that of the machine with the GPU.
set -euo pipefail
WHEELS=${1:?usage: fetch_wheels.sh WHEELS}
PYTHON=${PYTHON:-python3} PYTHON_VERSION=${PYTHON_VERSION:-3.12}
PACKAGES=(
  transformers==5.19.0 peft==0.20.0 ms-swift==4.6.0 soundfile==0.14.0 soxr==1.1.0 cffi==2.1.1
  # What `import swift.pipelines` and a training run need, found by hiding one package at a time:
  datasets==4.8.4 dill==0.4.1 multiprocess==0.70.19 modelscope==1.40.2 modelscope-hub==0.5.1 cryptography==50.0.2
  pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 zstandard==0.25.0
  json-repair==0.64.6 binpacking==2.0.1 xxhash
  # For the part `suite`:
  pytest iniconfig pluggy
)
PLATFORMS=()
for libc in _2_28 _2_27 _2_26 _2_17 2014 _2_12 _2_5 1; do PLATFORMS+=(--platform "manylinux${libc}_x86_64"); done
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$PYTHON_VERSION" --implementation cp \
  --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none "${PLATFORMS[@]}" --dest "$WHEELS" "${PACKAGES[@]}"
du -csh "$WHEELS"/*.whl | tail -1
