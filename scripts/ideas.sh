#!/usr/bin/env bash
# Changes to Token Expansion beside the paper's ToE: seeds that reach the image's last rows (at r1 = 0.6; at 0.5 the
# paper's do), tokens that grow in ten stages, expansion after block 2 (of 12, the paper's Table 8 has it; the proxy has 6).
# scripts/ideas.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

shares="[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]"
rates="[0.5, 0.556, 0.611, 0.667, 0.722, 0.778, 0.833, 0.889, 0.944, 1.0]"
[ "$scale" != smoke ] || shares="[0, 0.2, 0.4, 0.6, 0.8]" rates="[0.5, 0.625, 0.75, 0.875, 1.0]" # of five epochs

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
wider=("expansion.keep_rates=[0.6, 0.8, 1.0]" expansion.initial_keep_rate=0.3)
if [ -n "$proxy" ]; then run - proxy_toe_r06; else vary deit_tiny r1_0.6 "${wider[@]}"; fi
vary deit_tiny even_seeds "${wider[@]}" expansion.initialization=even
vary deit_tiny linear expansion.stage_epochs=null "expansion.stage_shares=$shares" "expansion.keep_rates=$rates"
vary deit_tiny after_block_2 expansion.after_block=2
half=deit_tiny_toe_r05 most=deit_tiny_r1_0.6
[ -z "$proxy" ] || half=proxy_toe_r05 most=proxy_toe_r06
report "Changes to Token Expansion" --against "$half"
[ -n "$list" ] || toe-tools report "${runs[@]}" --title "${note:+$note: }Even seeds" --against "$most" --differences
