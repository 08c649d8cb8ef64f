#!/usr/bin/env bash
# The proxy in all its variants: CIFAR-10 at 32 x 32, plain, with ToE, and without its parts. What one GPU can check.
# scripts/proxy.sh --seeds 3 data.root=/path/to/cifar10; with --cpu a small model and 15 epochs.
set -euo pipefail
set -- --proxy "$@"
. "$(dirname "$0")/lib.sh"

run plain - proxy
run toe_r05 - proxy_toe_r05
run random_dropping - proxy_random
run no_merging - proxy_toe_r05 expansion.merging=false
run no_expansion - proxy_toe_r05 expansion.expansion=uniform
run toe_r04 - proxy_toe_r04
run toe_r06 - proxy_toe_r06
run et - proxy_et
run et_toe_r06 - proxy_et_toe_r06
report "The proxy"
