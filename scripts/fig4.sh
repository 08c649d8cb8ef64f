#!/usr/bin/env bash
# Figure 4: r1 against speed and accuracy, DeiT-T; r1 = 0.5 is the row of Table 2. scripts/fig4.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# rate R1 R2 R0: the row r1_R1, with R1 of the tokens in the first stage, R2 in the second, and a share R0 for seeds.
rate() { vary deit_tiny "r1_$1" "expansion.keep_rates=[$1, $2, 1.0]" "expansion.initial_keep_rate=$3"; }

run deit_tiny proxy
rate 0.3 0.65 0.15
if [ -n "$proxy" ]; then run - proxy_toe_r04; else rate 0.4 0.7 0.2; fi
run deit_tiny_toe_r05 proxy_toe_r05
if [ -n "$proxy" ]; then run - proxy_toe_r06; else rate 0.6 0.8 0.3; fi
rate 0.7 0.85 0.35
report "Figure 4: r1, speed and accuracy"
