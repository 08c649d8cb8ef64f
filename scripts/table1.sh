#!/usr/bin/env bash
# Table 1: ToE beside the methods that it is compared with, DeiT-T and DeiT-B; rows of Table 2.
# scripts/table1.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_s2vite proxy_s2vite
run deit_tiny_tome_r8 proxy_tome
run deit_tiny_networkexpansion_6_12 proxy_networkexpansion
run deit_tiny_toe_r05 proxy_toe_r05
run deit_base -
run deit_base_stackbert proxy_stackbert
run deit_base_networkexpansion_6_12 -
run deit_base_toe_r05 -
report "Table 1: the compared methods"
