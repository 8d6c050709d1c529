"""Does it work on a GPU, is it right, how fast, in how much memory: `python -m benchmarks.gpu`.

On a machine with one GPU, in the root of the repository, nine minutes; `results.jsonl` and a table:

    pip install -e . pytest && python -m benchmarks.gpu         with network
    bash benchmarks/gpu/fetch_wheels.sh WHEELS                  without: first where there is one,
    bash benchmarks/gpu/gpu.sh WHEELS                           then there; its own torch is used
    python -m benchmarks.gpu --cpu --tiny                       everything, small, without a GPU

    env        bandwidth and rate that the rest is compared with; attention kernels
    numerics   losses, gradients and codes against a CPU's and transformers'
    swift      MS-SWIFT's own runs: LoRA, full, packed
    suite      the project's tests of layers and losses, their tensors on the GPU
    train      tokens per second, waits and memory of a step, against transformers and the estimate
    codec      speed, and codes against a CPU's
    decode     frames per second, first piece, compiles, captures, against transformers and bytes

Each part is a process of its own with a limit of time: what it has measured is on the disk. A line
of results.jsonl holds name, value, unit, device, dtype, torch, driver, and a goal with its verdict.
Goals of speed are those of one H100 (SXM), and are not judged with `--tiny`."""
