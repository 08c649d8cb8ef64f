#!/usr/bin/env bash
# Figure 3: validation accuracy over the epochs, DeiT-T plain and with ToE. scripts/fig3.sh data.root=/path/to/imagenet
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
report "Figure 3: accuracy over the epochs"
