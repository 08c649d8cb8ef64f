#!/usr/bin/env bash
# Table 6: r0, the number of stages and k, on DeiT-T. scripts/table6.sh data.root=/path/to/imagenet
# Which printed value belongs to which column is lost but for the default's, 72.6 (docs/fidelity.md, "Printed tables").
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case $proxy$scale in
full) halves="[0, 150]" quarters="[0, 75, 150, 225]" ;;
yesfull) halves="[0, 30]" quarters="[0, 15, 30, 45]" ;;
yescpu) halves="[0, 8]" quarters="[0, 4, 8, 12]" ;;
yessmoke) halves="[0, 3]" quarters="[0, 1, 2, 4]" ;;
esac
run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
vary deit_tiny r0_third expansion.initial_keep_rate=0.16666666666666666
vary deit_tiny r0_two_thirds expansion.initial_keep_rate=0.3333333333333333
vary deit_tiny two_stages "expansion.stage_epochs=$halves" "expansion.keep_rates=[0.5, 1.0]"
vary deit_tiny four_stages "expansion.stage_epochs=$quarters" \
    "expansion.keep_rates=[0.5, 0.6666666666666666, 0.8333333333333334, 1.0]"
vary deit_tiny k1 expansion.repeats=1
vary deit_tiny k3 expansion.repeats=3
report "Table 6: factors of the speed-up"
