#!/usr/bin/env bash
#SBATCH --job-name=oxa-7b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# OXA on Qwen2.5-Math-7B, from data to report, in one job. From the repository:
#
#   sbatch slurm/oxa_7b.sh                             # H100 nodes: slurm/clusters/h100.yaml
#   CLUSTER=a100 sbatch slurm/oxa_7b.sh                # A100 nodes
#   sbatch slurm/oxa_7b.sh --set train.updates=20      # further arguments go to `mreason run`
#   RECIPE=my.yaml sbatch slurm/oxa_7b.sh              # another file in place of the recipe
#
# On CPUs, with a tiny model (docs/cluster.md):
#   CLUSTER=laptop RECIPE=examples/rehearsal/oxa_7b.yaml \
#     sbatch --nodes=2 --gpus-per-node=0 --time=10 slurm/oxa_7b.sh
set -euo pipefail
source slurm/job.sh
mreason_job "${CLUSTER:-h100}" run "${RECIPE:-examples/oxa/full_7b.yaml}" "$@"
