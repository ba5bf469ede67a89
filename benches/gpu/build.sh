#!/usr/bin/env bash
# Builds what a machine with a GPU, but without a toolchain, needs to check and measure this project: into target/gpu, 64 MB at
# most. Needs nvcc (CUDA_HOME, or on the PATH). There, `bash target/gpu/run.sh FOLDER` does the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"

out=target/gpu
rm -rf "$out"
mkdir -p "$out"
executable() {
    cargo bench --features nccl --no-run --bench "$1" --message-format=json |
        grep '"executable":"' | grep "\"name\":\"$1\"" | sed 's/.*"executable":"\([^"]*\)".*/\1/' | tail -n 1
}
for bench in gpu step; do
    file="$(executable "$bench")"
    [ -x "$file" ] || { echo "cargo built no bench $bench" >&2; exit 1; }
    cp "$file" "$out/$bench"
    strip "$out/$bench" 2>/dev/null || true
    gzip "$out/$bench" # candle's kernels are text of tens of MB
done
cp benches/peers/run.py benches/peers/twin.py benches/gpu/run.sh benches/gpu/ranks.sh "$out/"
git rev-parse HEAD >"$out/commit"
du -sh "$out"
