#!/usr/bin/env bash
# Table 4: EfficientTrain and ToE on DeiT-T/S. scripts/table4.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny_et_baseline proxy
run deit_tiny_et proxy_et
run deit_tiny_et_toe_r06 proxy_et_toe_r06
run deit_small_et_baseline -
run deit_small_et -
run deit_small_et_toe_r06 -
report "Table 4: EfficientTrain"
