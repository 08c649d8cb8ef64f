#!/usr/bin/env bash
# A run on several nodes under Slurm that goes on by itself at the end of its time limit, after a crash, and where Slurm
# requeues it.
#
#   sbatch --partition=gpu --account=me --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       --output=logs/%x-%j.out --mail-type=END,FAIL scripts/slurm.sh configs/deit_base_toe_r05.yaml data.root=/path/to/imagenet
#
# Slurm does not make the folder of --output. One task a GPU; its cores are --cpus-per-task (12, if not given).
#
# Two minutes before the end Slurm sends USR1 to this script: the run writes a checkpoint, and the job is put back into
# the queue. TERM writes one too, and ends the job with exit code 75. A task that is lost ends the others, and all are
# started again from the last checkpoint, at most three times. The run folder must lie on a disk that all nodes share.
#SBATCH --job-name=toe-train
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

config=${1:-}
[ -n "$config" ] || fail "no configuration: sbatch [options] scripts/slurm.sh CONFIG [KEY=VALUE ...]"
shift
[ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null || fail "this is no Slurm job: start it by sbatch (docs/cluster.md)"
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("toe_train") is None)' 2>/dev/null ||
    fail "python here has no toe_train: activate its environment before sbatch (source .venv/bin/activate)"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Exit codes of the tasks, since srun's own hides all but the highest: where all nodes see them, as they mostly do the
# folder of sbatch; else those of the first node.
ENDINGS=$(mktemp -d "$PWD/.toe-train-$SLURM_JOB_ID-XXXXXX" 2>/dev/null || mktemp -d)
export MASTER_ADDR ENDINGS OMP_NUM_THREADS=1 SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-12}
trap 'rm -rf "$ENDINGS"' EXIT

# What a task does. Slurm signals this shell, which passes it on. Where the place is saved (75) the task ends as if all
# were well, so that srun lets the others end as well.
task='
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
python -m toe_train --config "$@" & python=$!
trap "kill -USR1 $python" USR1
trap "kill -TERM $python" TERM
until wait "$python"; code=$?; ! kill -0 "$python" 2>/dev/null; do :; done
[ ! -d "$ENDINGS" ] || echo "$code" > "$ENDINGS/$RANK"
[ "$code" -eq 75 ] || exit "$code"
'

step='' leaving='' stopped='' starts_before=${SLURM_RESTART_COUNT:-0}
trap 'leaving=1; [ -z "$step" ] || kill -USR1 "$step"' USR1 # srun passes it on to the tasks
trap 'stopped=1' TERM                                       # which Slurm sends to the tasks itself

for crashes in 0 1 2 3; do
    [ -z "$leaving$stopped" ] || break
    # Another port than that of the processes before; and --resume never|PATH counts for the first start alone.
    export MASTER_PORT=$((20000 + (4 * SLURM_JOB_ID + crashes) % 20000)) SLURM_RESTART_COUNT=$((starts_before + crashes))
    export TOE_RESTARTS_LEFT=$((3 - crashes)) # log.on_end waits for the last one
    rm -f "$ENDINGS"/*
    srun --kill-on-bad-exit=1 bash -c "$task" toe-train "$config" "$@" &
    step=$!
    until wait "$step"; code=$?; ! kill -0 "$step" 2>/dev/null; do :; done
    step=''
    endings=" $(cat "$ENDINGS"/* 2>/dev/null | sort -u | tr '\n' ' ')"
    # What the user has to mend (2), what the run gave up (3) and where it stopped (75) would be the same again.
    for final in 2 3 75; do
        [[ "$endings" != *" $final "* ]] || { code=$final && break 2; }
    done
    [ "$code" -ne 0 ] || break
done

if [ -n "$leaving" ] && [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "$code" -ne 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
