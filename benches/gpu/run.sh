#!/usr/bin/env bash
# On a machine with a GPU: parity of every operation with the CPU, then this project's steps, then those of PyTorch and ours in
# turn. Writes everything into one folder, of which record.md is for benches/records. Under nine minutes on an H200.
#
#     bash run.sh FOLDER
#
# Takes CUDA's libraries from PyTorch's wheels if `python3` has them, else from the system.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${1:?a folder to write to}"
mkdir -p "$out"
programs="$(mktemp -d)"
trap 'rm -rf "$programs"' EXIT
for bench in gpu step; do
    gunzip -c "$here/$bench.gz" >"$programs/$bench" && chmod +x "$programs/$bench" || exit 1
done

wheels="$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent / "nvidia")' 2>/dev/null || true)"
export LD_LIBRARY_PATH="${wheels:+$wheels/cu13/lib:$wheels/nccl/lib:}/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

{
    echo "# GPU, $(date -u +%F), commit $(cat "$here/commit")"
    echo
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
} >"$out/record.md"
failed=0
# A title, a file, a limit in seconds, and what to run: its output goes to the file and, as text, into the record.
part() {
    local title="$1" file="$out/$2" limit="$3"
    shift 3
    echo "== $title"
    local start=$SECONDS
    timeout "$limit" "$@" >"$file" 2>"$file.errors" || { failed=1; echo "== FAILED: $title"; tail -n 20 "$file.errors"; }
    [ -s "$file.errors" ] || rm -f "$file.errors"
    tail -n 40 "$file"
    echo "== $((SECONDS - start)) s"
    { echo; echo "## $title"; echo; echo '```text'; cat "$file"; echo '```'; } >>"$out/record.md"
}
part "Parity with the CPU" parity.txt 120 "$programs/gpu" 3
part "Processes" ranks.txt 90 bash "$here/ranks.sh" "$programs/gpu"
part "Steps, bf16, B 32 x T 1024, keep" keep.txt 90 "$programs/step" 124m-long 5 bf16 --device cuda --only keep
part "Steps, bf16, plain and sampled" plain.txt 40 "$programs/step" 124m-long 5 bf16 --device cuda --only rho
part "Steps, bf16, distillation from 355M" kd.txt 70 "$programs/step" 124m-long 5 bf16 --device cuda --only KD
part "Steps, bf16, dense KD from 774M" kd-large.txt 50 "$programs/step" 124m-long 5 bf16 --device cuda --teacher 774m --only dense
part "PyTorch and ours in turn" peers.txt 160 python3 "$here/run.py" --device cuda --bench "$programs/step" --python "$(command -v python3)"
exit "$failed"
