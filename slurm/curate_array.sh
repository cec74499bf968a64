#!/usr/bin/env bash
#SBATCH --job-name=curate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.out
# One curation stage over a large table, a shard a task, then a job that merges the shards:
#   sbatch --array=0-31 slurm/curate_array.sh score graded scored --set model.path=Qwen/Qwen2.5-Math-7B
#   sbatch --array=0-15 slurm/curate_array.sh grade teacher graded --set stage.workers=16
# The stage reads the folder `graded` and writes `scored-0`, ..., then `scored`. A task that is
# requeued goes on where it was; the merge runs once all have ended well.
set -euo pipefail
source slurm/job.sh

# Written last: the work of a requeued job that had just been done.
done_before() { [ ! -e "$1/stage.json" ] || { say "$1 is done"; exit 0; }; }

if [ "$1" = merge ]; then # what the first task submits
  output="$2" shards=()
  for ((i = 0; i < $3; i++)); do shards+=(--in "$output-$i"); done
  done_before "$output"
  mreason_job "${CLUSTER:-h100}" stage merge "${shards[@]}" --out "$output"
  exit
fi

stage="$1" input="$2" output="$3" task="${SLURM_ARRAY_TASK_ID:?submit it with sbatch --array=0-N}"
shift 3
if [ "$task" = 0 ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
  sbatch --job-name=merge --output=slurm-%x-%j.out --kill-on-invalid-dep=yes \
    --dependency="afterok:$SLURM_ARRAY_JOB_ID" \
    slurm/curate_array.sh merge "$output" "$SLURM_ARRAY_TASK_COUNT"
fi
done_before "$output-$task"
mreason_job "${CLUSTER:-h100}" stage "$stage" --in "$input" --out "$output-$task" \
  --shard "$task/$SLURM_ARRAY_TASK_COUNT" "$@"
