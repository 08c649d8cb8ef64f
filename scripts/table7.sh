#!/usr/bin/env bash
# Table 7: initialisation, expansion and merging, on DeiT-T. scripts/table7.sh data.root=/path/to/imagenet
# "No expansion" in both readings: the seeds alone, and the whole budget evenly spread. Random dropping is not the paper's.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

row() { run "$1" deit_tiny_toe_r05 proxy_toe_r05 "${@:2}"; }
run deit_tiny deit_tiny proxy
row deit_tiny_toe_r05
row random_init expansion.initialization=random
row no_expansion_seeds expansion.expansion=none
row no_expansion_even expansion.expansion=uniform
row no_merging expansion.merging=false
row random_dropping expansion.initialization=random expansion.expansion=uniform expansion.merging=false
report "Table 7: effect of each part"
