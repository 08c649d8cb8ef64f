#!/usr/bin/env bash
# Table 9: distances, on DeiT-T/S, with the paper's meaning and as released; *_toe_r05 is the cosine.
# scripts/table9.sh data.root=/path/to/imagenet
# The released Manhattan and Euclidean take the farthest token for the nearest, and a correct Euclidean distance of unit
# vectors selects the cosine's tokens (README, Fidelity).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
run deit_small -
run deit_small_toe_r05 -
for model in deit_tiny deit_small; do
    for metric in manhattan euclidean manhattan_released euclidean_released; do
        vary $model $metric expansion.metric=$metric
    done
done
report "Table 9: distances"
