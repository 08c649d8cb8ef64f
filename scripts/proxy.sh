#!/usr/bin/env bash
# The proxy in all its variants: CIFAR-10 at 32 x 32, plain, with ToE, and without its parts. What one GPU can check.
# scripts/proxy.sh --seeds 3 data.root=/path/to/cifar10; with --cpu --jobs 2 two runs at a time, each of minutes on a core.
# LV-ViT's are in table3.sh --proxy, those at equal compute in equal_compute.sh --proxy.
set -euo pipefail
set -- --proxy "$@"
. "$(dirname "$0")/lib.sh"

run - proxy
run - proxy_toe_r05
run - proxy_random
run - proxy_tome
run - proxy_networkexpansion
run - proxy_stackbert
run - proxy_s2vite
vary deit_tiny no_merging expansion.merging=false
vary deit_tiny no_expansion_even expansion.expansion=uniform
run - proxy_toe_r04
run - proxy_toe_r06
run - proxy_et
run - proxy_et_toe_r06
report "The proxy"
