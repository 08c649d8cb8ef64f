#!/usr/bin/env bash
# Table 7: initialisation, expansion and merging, on DeiT-T/S. scripts/table7.sh data.root=/path/to/imagenet
# "No expansion" in both readings: the seeds alone, and the whole budget evenly spread. Random dropping is not the paper's.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
run deit_small -
run deit_small_toe_r05 -
for model in deit_tiny deit_small; do
    vary $model random_init expansion.initialization=random
    vary $model no_expansion_seeds expansion.expansion=none
    vary $model no_expansion_even expansion.expansion=uniform
    vary $model no_merging expansion.merging=false
    [ -n "$proxy" ] ||
        vary $model random_dropping expansion.initialization=random expansion.expansion=uniform expansion.merging=false
done
run - proxy_random
report "Table 7: effect of each part"
