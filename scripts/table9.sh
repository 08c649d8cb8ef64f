#!/usr/bin/env bash
# Table 9: distances, on DeiT-T, with the paper's meaning and as released. scripts/table9.sh data.root=/path/to/imagenet
# The released Manhattan and Euclidean take the farthest token for the nearest, and a correct Euclidean distance of unit
# vectors selects the cosine's tokens (README, Fidelity).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

for metric in manhattan euclidean cosine manhattan_released euclidean_released; do
    run "$metric" deit_tiny_toe_r05 proxy_toe_r05 "expansion.metric=$metric"
done
report "Table 9: distances"
