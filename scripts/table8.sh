#!/usr/bin/env bash
# Table 8: where tokens are dropped, on DeiT-T; after block 1 by default. scripts/table8.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
vary deit_tiny after_block_0 expansion.after_block=0
run deit_tiny_toe_r05 proxy_toe_r05
vary deit_tiny after_block_2 expansion.after_block=2
vary deit_tiny after_block_3 expansion.after_block=3
report "Table 8: the block after which tokens are dropped"
