# What the scripts of the paper's tables and figures share. They take
#
#   --proxy        the small stand-in on CIFAR-10 (configs/proxy*.yaml) in place of ImageNet
#   --cpu          of the proxy, a model and a schedule that a CPU does in minutes a run
#   --smoke        of the proxy, runs of seconds on scikit-learn's digits (tableB1 on shapes, as with --cpu): whether all of it works
#   --seeds N      runs of each row, with seeds 0 ... N-1 (default: 1); A-B for seeds A ... B
#   --jobs N       with --cpu or --smoke: N runs at a time, each with one thread, seed by seed; what they print goes to
#                  logs/ of the output, and the machine's load, once a minute, to load.log
#   --list         print the commands of the runs, one a line, and start none: for a scheduler of your own, or for
#                  slurm_table.sh; where one starts from another (table5), it comes after it
#   --output DIR   gets a run folder for each row and seed, and report/<script>/ (default: runs/paper; with --proxy
#                  runs/proxy, runs/proxy-cpu or runs/proxy-smoke)
#   KEY=VALUE      for every run, e.g. data.root=/path/to/imagenet; what changes the training needs an --output of its own.
#                  With --cpu data.root is CIFAR-10, of which 7,000 images train (scripts/proxy_images.py); with --smoke
#                  no images are read from it
#
# and continue where they were broken off: what is finished is passed over, what is not goes on from its checkpoint.
# All of them share the output folder, in which a run has the same name in every script, so that none is trained twice:
# run one script after another in it; a second one at the same time is refused.

set -euo pipefail
here=$PWD self=$(realpath "$0")
cd "$(dirname "$self")/.."
command -v toe-train >/dev/null || PATH="$PWD/.venv/bin:$PATH"

fail() {
    echo "error: $1" >&2
    exit 2
}

# The headers of the script and of this file.
usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$self" >&2
    echo >&2
    sed -n '1,/^$/s/^# \{0,1\}//p' scripts/lib.sh >&2
    fail "$1"
}

# absolute PATH: a relative one is the caller's.
absolute() {
    case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac
}

proxy='' scale=full seeds=1 jobs='' list='' output='' source=() extra=()
labels=() # what LV-ViT alone takes
while [ $# -gt 0 ]; do
    case $1 in
    --proxy) proxy=yes ;;
    --cpu) scale=cpu ;;
    --smoke) scale=smoke ;;
    --list) list=yes ;;
    --seeds | --jobs | --output)
        case ${2:-} in '' | -*) fail "$1 needs a value" ;; esac
        case $1 in --seeds) seeds=$2 ;; --jobs) jobs=$2 ;; --output) output=$(absolute "$2") ;; esac
        shift
        ;;
    -*) usage "there is no option $1" ;;
    data.root=?*) source+=("data.root=$(absolute "${1#*=}")") ;;
    data.kind=?*) source+=("$1") ;;
    token_labels.root=?*) labels+=("token_labels.root=$(absolute "${1#*=}")") ;;
    token_labels.*=*) labels+=("$1") ;;
    *=*) extra+=("$1") ;;
    *) usage "$1 is no option and no KEY=VALUE" ;;
    esac
    shift
done
if [ "$scale" != full ] && [ -z "$proxy" ]; then
    fail "--cpu and --smoke are scales of --proxy; give it too"
fi
[ "$scale" != full ] || extra+=("${source[@]}") # at smaller scales the images are made of them, or are others
if [[ $seeds =~ ^[1-9][0-9]{0,8}$ ]]; then
    first=0 last=$((seeds - 1))
elif [[ $seeds =~ ^(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})$ ]] && [ "${seeds%-*}" -le "${seeds#*-}" ]; then
    first=${seeds%-*} last=${seeds#*-}
else
    fail "--seeds $seeds: give the number of runs, at least 1, or the first and the last seed as A-B"
fi
if [ -n "$jobs" ]; then
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # which would take those for the number of cores
    [ "$scale" != full ] || fail "--jobs is for --cpu and --smoke; elsewhere a run takes all GPUs: start those of --list yourself"
    if ! [[ $jobs =~ ^[1-9][0-9]{0,3}$ ]] || [ "$jobs" -gt "$cores" ]; then
        fail "--jobs $jobs: give the number of runs at a time, from 1 to the $cores cores of this machine"
    fi
fi
if [ -z "$output" ]; then
    case $proxy$scale in
    full) output=$PWD/runs/paper ;;
    yesfull) output=$PWD/runs/proxy ;;
    *) output=$PWD/runs/proxy-$scale ;;
    esac
fi
if [ -z "$list" ] && ! command -v toe-train >/dev/null; then
    fail "toe-train is not installed here: make quickstart, or activate its environment (source .venv/bin/activate)"
fi
mkdir -p "$output"
output=$(cd "$output" && pwd -P) # one name for the folder, however it was given: fine-tuning writes it down
script=$(basename "$self" .sh)
if [ -z "$list" ] && command -v flock >/dev/null; then
    exec 9>"$output/.lock" # the runs hold it too, should they outlive the script
    flock -n 9 || fail "another script, or a run that it started, works in $output: wait for it, or give another --output"
fi
runs=() # run folders, in the order of the table
waiting=() # commands of runs that --jobs starts later, each behind its seed
[ -z "$list" ] || exec 3>&1 >&2 # what else is told is not of the list
note=''
if [ "$scale" = smoke ]; then
    note="Smoke test on scikit-learn's digits, no result"
    [ "$script" != tableB1 ] || note="Smoke test on shapes drawn by code, no result"
    echo "$note"
fi

# at_end: what `finish` started goes with the script, and has a minute to save its place; then the note once more.
groups=()
at_end() {
    local group tenth
    for group in "${groups[@]}"; do
        kill -- "-$group" 2>/dev/null || true
    done
    for group in "${groups[@]}"; do
        for ((tenth = 0; tenth < 600; tenth++)); do
            kill -0 -- "-$group" 2>/dev/null || break
            sleep 0.1
        done
    done
    [ -z "$note" ] || echo "$note"
}
trap at_end EXIT

# run CONFIG PROXY: the row of a shipped configuration, with --proxy of the second one, which names it; "-" is none.
run() {
    local config=$1
    [ -z "$proxy" ] || config=$2
    [ "$config" = - ] || train "$config" "$config"
}

# vary MODEL NAME KEY=VALUE ...: the row MODEL_NAME, MODEL (deit_tiny or deit_small) with ToE and something changed;
# with --proxy the row proxy_NAME in place of deit_tiny's, and nothing in place of deit_small's.
vary() {
    local model=$1 name=$2
    shift 2
    if [ -z "$proxy" ]; then
        train "${model}_$name" "${model}_toe_r05" "$@"
    elif [ "$model" = deit_tiny ]; then
        train "proxy_$name" proxy_toe_r05 "$@"
    fi
}

# train NAME CONFIG [KEY=VALUE ...]: the row NAME, a run for each seed; {seed} in a value is its seed.
train() {
    local name=$1 config=$2 given=() own=()
    shift 2
    at_scale "$config"
    start "$name" "configs/$config.yaml" "${given[@]}" "$@" "${own[@]}" "${extra[@]}"
}

# at_scale CONFIG: adds to `given` and `own` what comes before and after a row's own values.
at_scale() {
    [ "$scale" = full ] || scale_down "$1"
    case $1 in *lvvit*) own=("${labels[@]}") ;; esac
}

# start NAME FILE [KEY=VALUE ...]: the row NAME of a configuration file, which holds what is of this scale already.
start() {
    local name=$1 file=$2 seed folder command
    shift 2
    for ((seed = first; seed <= last; seed++)); do
        folder=$output/$name-s$seed
        runs+=("$folder")
        command=(toe-train --config "$file" --output "$folder" "${@//\{seed\}/$seed}" seed="$seed")
        if [ -n "$list" ]; then
            echo "${command[*]@Q}" >&3
        elif [ -n "$jobs" ]; then
            waiting+=("$seed ${command[*]@Q}")
        else
            echo "== $folder"
            "${command[@]}"
        fi
    done
}

# finish: trains the runs that wait, the first seed of every row before the second.
finish() {
    [ ${#waiting[@]} -gt 0 ] || return 0
    local code logs=$output/logs
    mkdir -p "$logs"
    rm -f "$logs/ended"
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    set -m # each of the two is a group of processes, which `at_end` ends whole
    while kill -0 $$; do
        echo "$(date -u +%FT%TZ) $(uptime | sed 's/.*average[s]*: *//')" >>"$output/load.log"
        sleep 60
    done >/dev/null 2>&1 &
    groups=($!)
    (
        printf '%s\n' "${waiting[@]}" | sort -s -n -k 1,1 | cut -d ' ' -f 2- | tr '\n' '\0' |
            OMP_NUM_THREADS=1 xargs -0 -n 1 -P "$jobs" bash -c '
            eval "command=($2)"
            folder=${command[4]}
            log=$1/${folder##*/}.log
            echo "== $folder, told in $log"
            "${command[@]}" >>"$log" 2>&1 </dev/null && exit
            code=$?
            echo "$code" >"$1/ended"
            echo "error: $folder ended with $code; $log ends in:" >&2
            tail -n 5 "$log" >&2
            exit 255 # no further run is started
        ' job "$logs"
    ) &
    groups+=($!)
    set +m
    if ! wait "${groups[1]}"; then
        code=$(cat "$logs/ended" 2>/dev/null || echo 1)
        echo "error: not all runs are there; mend what ended this one, and the same command goes on" >&2
        exit "$code"
    fi
    kill -- "-${groups[0]}"
    groups=() waiting=()
    trap - INT TERM HUP
}

# scale_down CONFIG: adds to `given` what brings a configuration of the proxy to its scale; stages keep their shares.
scale_down() {
    case $1 in *_yolos*)
        scale_yolos "$1"
        return
        ;;
    esac
    local thirds="[0, 5, 9]" fifths="[0, 3, 6, 8, 11]" batch=64 width=64 depth=6
    local halves="[0, 7]" half=3 doubled="[3, 6]" doublings="[0, 4]" merged=5 updates=95
    images
    if [ "$scale" = cpu ]; then
        # By epochs the rate would jump from 1e-6 to its peak, and seeds differ by 2 points and more for it.
        given+=(epochs=14 evaluate.every_epochs=14 optim.lr=1e-3 schedule.unit=step schedule.warmup_epochs=2 model.drop_path=0)
        given+=(augment.color_jitter=0 augment.mixup=0 augment.cutmix=0 augment.smoothing=0)
        case $1 in # what nothing reads is left out
        *_lvvit* | *_teacher) ;;
        *_networkexpansion) given+=(train.ema_decay=0.99) ;;
        *) given+=(train.ema_decay=null) ;;
        esac
    else
        thirds="[0, 2, 4]" fifths="[0, 1, 2, 3, 4]" batch=128 width=32 depth=4
        halves="[0, 2]" half=2 doubled="[1, 2, 4]" doublings="[0, 1, 2]" merged=8 updates=5
        given+=(epochs=5 evaluate.every_epochs=1 schedule.warmup_epochs=1)
    fi
    given+=(train.precision=fp32 data.workers=0 train.global_batch="$batch")
    case $1-$scale in
    *_lvvit*-cpu | *_teacher-cpu) ;; # small as they are
    *_lvvit*) given+=("model.kwargs={patch_size: 4, embed_dim: 60, depth: 3, num_heads: 2, skip_lam: 1.0, stem_width: 16}") ;;
    *_teacher*) given+=("model.kwargs={patch_size: 4, embed_dim: 64, depth: 2, num_heads: 2, global_pool: avg, class_token: false}") ;;
    *) given+=("model.kwargs={patch_size: 4, embed_dim: $width, depth: $depth, num_heads: 2}") ;;
    esac
    case $1 in *_toe_* | *_random) given+=("expansion.stage_epochs=$thirds") ;; esac
    case $1 in
    *_tome) given+=("method.r=$merged") ;;
    *_stackbert) given+=("method.depths=$doubled" "method.from_epochs=$doublings") ;;
    *_s2vite) given+=(method.heads_kept=0.5 "method.update_every=$updates") ;; # of two heads
    *_networkexpansion) given+=("method.from_epochs=$halves") ;;
    esac
    case $1-$scale in
    *_lvvit_networkexpansion-smoke) given+=("method.depths=[2, 3]") ;;
    *_lvvit_networkexpansion-cpu) ;;
    *_networkexpansion-*) given+=("method.depths=[$half, $depth]") ;;
    esac
    case $1 in *_et | *_et_*)
        given+=("curriculum.stage_epochs=$fifths" "curriculum.micro_batches=[$batch, $batch, $batch, $batch, $batch]")
        [ "$scale" != cpu ] || given+=("curriculum.rand_augments=[null, null, null, null, null]")
        ;;
    *)
        given+=(augment.mix_group="$batch")
        [ "$scale" != cpu ] || given+=(augment.rand_augment=null)
        ;;
    esac
}

# scale_yolos CONFIG: as scale_down, of a detection proxy, on shapes drawn by code.
scale_yolos() {
    local stages="[1, 10, 20]" width=96 heads=3 depth=4 batch=16 queries=4
    if [ "$scale" = cpu ]; then
        shapes 768 256
        given+=(epochs=30 evaluate.every_epochs=5)
        # Pixels as small as positions are in the beginning (.02), so that these count from the first step.
        given+=("augment.mean=[0.16, 0.16, 0.16]" "augment.std=[4, 4, 4]")
        given+=(optim.lr=1e-3 "detection.short_sides=[80]" detection.crop_prob=0)
    else
        stages="[1, 2, 3]" width=32 heads=2 depth=3 batch=4
        shapes 16 8
        given+=(epochs=4 evaluate.every_epochs=1 "detection.short_sides=[64, 80]")
        given+=("detection.crop_from=[64, 80]" "detection.crop_sides=[48, 80]")
    fi
    given+=(data.workers=0 data.root="$output/shapes" "${source[@]}" "model.image_size=[80, 96]")
    given+=(train.global_batch="$batch" train.max_micro_batch="$batch" detection.same_size="$batch")
    given+=(detection.longest_side=133 detection.eval_short_side=80 detection.eval_longest_side=133)
    given+=("model.kwargs={embed_dim: $width, depth: $depth, num_heads: $heads, num_det_tokens: $queries, init_size: [80, 96], mid_size: [80, 96]}")
    case $1 in *_toe_*) given+=("expansion.stage_epochs=$stages") ;; esac
}

# shapes TRAIN VAL: so many images of shapes with their boxes, drawn once.
shapes() {
    [ -d "$output/shapes" ] || python scripts/draw_shapes.py "$output/shapes" "$1" "$2"
}

# token_labels: makes the proxy's label files, once, by one teacher of seed 0 for the runs of all seeds.
token_labels() {
    local first=0 last=0 runs=() root
    if [ -n "$list" ]; then
        case "${labels[*]}" in *token_labels.root=*) return ;; esac
        fail "--list: the labels of LV-ViT's proxy come first; make them with this script without --list, then give token_labels.root=DIR"
    fi
    train proxy_teacher proxy_teacher
    finish
    root=$(data_root "${runs[0]}")
    toe-tools labels --images "$root/train" --output "$output/labels" --workers 1 \
        --teacher-weights "${runs[0]}/checkpoints/last.pt"
    labels=("token_labels.root=$output/labels" "${labels[@]}")
}

# data_root RUN: where the images of a run lie.
data_root() {
    python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["data"]["root"])' "$1/config.yaml"
}

# images: adds to `given` the images of a smaller scale, made once; for --cpu they are a part of CIFAR-10.
images() {
    local value folder=$output/digits from=(digits)
    if [ "$scale" = cpu ]; then
        folder=$output/cifar from=(image_folder data/cifar10) # proxy.yaml's
        for value in "${source[@]}"; do
            case $value in data.kind=*) from[0]=${value#*=} ;; data.root=*) from[1]=${value#*=} ;; esac
        done
    fi
    python scripts/proxy_images.py "$folder" "${from[@]}"
    given+=(data.kind=image_folder data.root="$folder")
}

# report TITLE [OPTION ...]: the table of the runs beside the paper's, printed and in $output/report/<script>.
report() {
    [ -z "$list" ] || return 0
    finish
    toe-tools report "${runs[@]}" --title "${note:+$note: }$1" --output "$output/report/$script" "${@:2}"
}
