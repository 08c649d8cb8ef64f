#!/usr/bin/env bash
# Table 10: GPU-seconds an epoch in each stage: the runs of Tables 2 and 3 with ToE. scripts/table10.sh data.root=/path/to/imagenet
# Given --output of table2.sh it reports that script's runs.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny_toe_r05 deit_tiny_toe_r05 proxy_toe_r05
run deit_small_toe_r05 deit_small_toe_r05 -
run deit_base_toe_r05 deit_base_toe_r05 -
run deit_base_toe_r04 deit_base_toe_r04 -
report "Table 10: time in each stage"
