#!/usr/bin/env bash
# Steps by one process, by one that talks to itself through NCCL, and by two, which need a GPU each or an NCCL of 2.30 that lets
# them share one: the same hashes, or it fails.
#
#     bash ranks.sh GPU_BENCH
set -uo pipefail
bench="${1:?the bench named gpu}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$bench" ranks >"$work/one" || exit 1
timeout 60 "$bench" ranks alone >"$work/alone" || exit 1
cat "$work/one"
cmp "$work/one" "$work/alone" || { echo "alone through NCCL: other bits"; exit 1; }
echo "alone through NCCL: the same"

export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500
gpus="$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)"
[ "$gpus" -ge 2 ] || export NCCL_MULTI_RANK_GPU_ENABLE=1
pids=()
for rank in 0 1; do
    RANK=$rank LOCAL_RANK=$rank timeout 60 "$bench" ranks >"$work/two$rank" 2>"$work/errors$rank" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
if [ "$status" -ne 0 ]; then
    tail -n 3 "$work"/errors*
    # An NCCL before 2.30 refuses two on one card, which is no fault.
    if [ "$gpus" -lt 2 ] && grep -q "invalid usage" "$work"/errors*; then
        echo "two processes on one GPU: not run"
        exit 0
    fi
    echo "two processes on $gpus GPUs: failed with $status"
    exit 1
fi
cmp "$work/one" "$work/two0" || { echo "two processes on $gpus GPUs: other bits"; exit 1; }
echo "two processes on $gpus GPUs: the same"
