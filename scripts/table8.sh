#!/usr/bin/env bash
# Table 8: where tokens are dropped, on DeiT-T. scripts/table8.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

for block in 0 1 2 3; do
    run "after_block_$block" deit_tiny_toe_r05 proxy_toe_r05 "expansion.after_block=$block"
done
report "Table 8: the block after which tokens are dropped"
