#!/usr/bin/env bash
# Figure 2: the features of token sets, before and after ToE, by t-SNE.
# scripts/fig2.sh data.root=/path/to/imagenet; a run of Table 2 comes first, if it is not there yet.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny_toe_r05 deit_tiny_toe_r05 proxy_toe_r05
root=$(data_root deit_tiny_toe_r05)
mapfile -t images < <(find -L "$root/val" -type f | sort | awk 'NR % 97 == 1' | head -n 4)
toe-tools view --checkpoint "$output/deit_tiny_toe_r05-s${seeds%-*}/checkpoints/last.pt" --images "${images[@]}" \
    --output "$output/kept.png" --features "$output/features.png" --blocks 1,2
