#!/usr/bin/env bash
# Table 2: DeiT-T/S/B on ImageNet-1K, plain and with ToE. scripts/table2.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
run deit_small -
run deit_small_toe_r05 -
run deit_base -
run deit_base_toe_r05 -
run deit_base_toe_r04 -
run deit_base_toe_hyper_r05 -
run deit_base_toe_hyper_r04 -
report "Table 2: DeiT"
