#!/usr/bin/env bash
# Figure 4: r1 against speed and accuracy, DeiT-T. scripts/fig4.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny deit_tiny proxy
for tenths in 3 4 5 6 7; do
    rates=$(python -c "r = $tenths / 10; print([r, round((1 + r) / 2, 3), 1.0])")
    seeds_rate=$(python -c "print($tenths / 20)")
    run "r1_0.$tenths" deit_tiny_toe_r05 proxy_toe_r05 "expansion.keep_rates=$rates" "expansion.initial_keep_rate=$seeds_rate"
done
report "Figure 4: r1, speed and accuracy"
