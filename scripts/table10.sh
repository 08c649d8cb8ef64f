#!/usr/bin/env bash
# Table 10: GPU-seconds an epoch in each stage: the runs of Tables 2 and 3 with ToE.
# scripts/table10.sh data.root=/path/to/imagenet token_labels.root=/path/to/labels
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny_toe_r05 proxy_toe_r05
run deit_small_toe_r05 -
run deit_base_toe_r05 -
run deit_base_toe_r04 -
run lvvit_t_toe_r04 -
run lvvit_s_toe_r04 -
run lvvit_m_toe_r04 -
report "Table 10: time in each stage"
