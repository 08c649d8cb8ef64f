#!/usr/bin/env bash
# Table 3: LV-ViT-T/S/M with token labels, plain, with NetworkExpansion and with ToE.
# scripts/table3.sh data.root=/path/to/imagenet token_labels.root=/path/to/labels; with --proxy the labels are made first.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ -z "$proxy" ] || token_labels
run lvvit_t proxy_lvvit
run lvvit_t_networkexpansion proxy_lvvit_networkexpansion
run lvvit_t_toe_r04 proxy_lvvit_toe_r04
run lvvit_s -
run lvvit_s_networkexpansion -
run lvvit_s_toe_r04 -
run lvvit_m -
run lvvit_m_networkexpansion -
run lvvit_m_toe_r04 -
report "Table 3: LV-ViT"
