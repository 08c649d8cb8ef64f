#!/usr/bin/env bash
# Changes to Token Expansion that are not in the paper, on the proxy, beside ToE as it is.
# scripts/ideas.sh --proxy --cpu --jobs 2 --seeds 5 data.root=/path/to/cifar10
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ -n "$proxy" ] || fail "they are tried on the proxy: give --proxy"

run - proxy
run - proxy_toe_r04
run - proxy_toe_r05
vary deit_tiny even_seeds expansion.initialization=even
train proxy_floor_r04 proxy_toe_r04 expansion.counts=floor
vary deit_tiny proportional_attention expansion.proportional_attention=true
vary deit_tiny linear expansion.stage_epochs=null "expansion.stage_shares=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]" \
    "expansion.keep_rates=[0.5, 0.556, 0.611, 0.667, 0.722, 0.778, 0.833, 0.889, 0.944, 1.0]"
vary deit_tiny after_block_2 expansion.after_block=2
report "Changes to Token Expansion"
