#!/usr/bin/env bash
# Table B1 (Appendix B.1): YOLOS-S on COCO 2017, plain and with ToE.
# scripts/tableB1.sh data.root=/path/to/coco model.initial_weights=/path/to/deit_small.pth; with --proxy data.root=/path/to/bccd;
# with --proxy --cpu it needs no data: shapes are drawn (docs/detection.md).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run yolos_small proxy_yolos
run yolos_small_toe_r05 proxy_yolos_toe_r05
report "Appendix B.1: YOLOS"
