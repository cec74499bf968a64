#!/usr/bin/env bash
#SBATCH --job-name=eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# Measure a model on benchmarks:
#   sbatch slurm/eval.sh MODEL --suite aime24 --suite aime25
set -euo pipefail
source slurm/job.sh
mreason_job "${CLUSTER:-h100}" eval "$@"
