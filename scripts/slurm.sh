#!/usr/bin/env bash
# A run on several nodes under Slurm that goes on by itself at the end of its time limit, after a crash, and where Slurm
# requeues it.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 scripts/slurm.sh configs/deit_base_toe_r05.yaml data.root=/path/to/imagenet
#
# One task a GPU. Two minutes before the end Slurm sends USR1 to every task: the run writes a checkpoint, and the job is
# put back into the queue. A task that is lost ends the others, and all are started again from the last checkpoint, at
# most three times. The run folder must lie on a disk that all nodes share.
#SBATCH --job-name=toe-train
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=${1:?usage: sbatch [options] scripts/slurm.sh CONFIG [KEY=VALUE ...]}
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR OMP_NUM_THREADS=1 SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-12}

# What a task does. The shell outlives the signals, which are for python. Where the place is saved (75) it ends as if
# all were well, so that srun leaves the others to do the same.
task='
trap requeue=1 USR1
trap : TERM
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
python -m toe_train --config "$@"
code=$?
[ "$code" -eq 75 ] || exit "$code"
[ -z "${requeue-}" ] || [ "$RANK" -ne 0 ] || scontrol requeue "$SLURM_JOB_ID"
'

starts_before=${SLURM_RESTART_COUNT:-0}
for crashes in 0 1 2 3; do
    # Another port than that of the processes before; and --resume never|PATH counts for the first start alone.
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000 + crashes)) SLURM_RESTART_COUNT=$((starts_before + crashes))
    srun --kill-on-bad-exit=1 bash -c "$task" toe-train "$config" "$@"
    code=$?
    # 1 is a crash, 128 and more a signal. What the user has to mend (2) and what the run gave up (3) would not change.
    [ "$code" -eq 1 ] || [ "$code" -ge 128 ] || break
done
exit "$code"
