#!/usr/bin/env bash
# Figure 7: the same as Figure 2 for more images and later blocks, in report/fig7 of the output folder.
# scripts/fig7.sh data.root=/path/to/imagenet; a run of Table 2 comes first, if it is not there yet.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

last=$first # one run will do
run deit_tiny_toe_r05 proxy_toe_r05
[ -z "$list" ] || exit 0
finish
root=$(data_root "${runs[0]}")
mapfile -t images < <(find -L "$root/val" -type f | sort | awk 'NR % 31 == 1' | head -n 8)
toe-tools view --checkpoint "${runs[0]}/checkpoints/last.pt" --images "${images[@]}" \
    --output "$output/report/fig7/kept.png" --features "$output/report/fig7/features.png" --blocks 1,2,3,4
