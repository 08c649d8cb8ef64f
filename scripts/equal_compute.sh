#!/usr/bin/env bash
# Is it worth it at equal compute? A run beside plain training for fewer epochs and on smaller images, and beside random
# dropping, all of as many FLOPs. scripts/equal_compute.sh data.root=/path/to/imagenet
# CONFIG in the environment names the run (default: deit_tiny_toe_r05, with --proxy proxy_toe_r05), of configs/ without .yaml.
# The other configurations come from `toe-tools plan --equal-compute`, by the run at its scale, and lie in equal_compute/ of the output.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

config=${CONFIG:-deit_tiny_toe_r05}
classes=1000
[ -z "$proxy" ] || config=${CONFIG:-proxy_toe_r05} classes=10
[ -f "configs/$config.yaml" ] || fail "CONFIG=$config: there is no configs/$config.yaml"
case $proxy$config in
yesproxy_*) ;;
yes*) fail "CONFIG=$config: with --proxy give one of the proxy's, such as proxy_toe_r05" ;;
proxy_*) fail "CONFIG=$config is of the proxy: give --proxy too" ;;
esac
plain=$(sed -E 's/_(et|etpp|toe|tome|networkexpansion|stackbert|s2vite|random)(_.*)?$//' <<<"$config")
case $config in *_et | *_et_* | *_etpp*) [ ! -f "configs/${plain}_et_baseline.yaml" ] || plain+=_et_baseline ;; esac
case $proxy$config in yes*lvvit*) token_labels ;; esac
# Before anything is trained, as it may refuse.
given=() own=()
at_scale "$config"
toe-tools plan --config "configs/$config.yaml" --equal-compute --classes "$classes" --output "$output/equal_compute" \
    "${given[@]}" "${own[@]}" "${extra[@]}"
if [ "$plain" = "$config" ]; then
    echo "no plain run of full length: the name $config tells of none" >&2
elif [ -f "configs/$plain.yaml" ]; then
    train "$plain" "$plain"
else
    echo "no plain run of full length: there is no configs/$plain.yaml" >&2
fi
train "$config" "$config"

# equal KIND: the row of as many FLOPs, where there is such a run.
equal() {
    local file=$output/equal_compute/${config}_$1.yaml
    [ ! -f "$file" ] || start "${config}_$1" "$file"
}

equal shorter
equal smaller
case $config in # what other scripts train too has their names
proxy_toe_r05) train proxy_random proxy_random ;;
deit_tiny_toe_r05 | deit_small_toe_r05)
    vary "${config%_toe_r05}" random_dropping \
        expansion.initialization=random expansion.expansion=uniform expansion.merging=false
    ;;
*) equal random ;;
esac
report "At equal compute: $config"
