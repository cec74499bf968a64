#!/usr/bin/env bash
#SBATCH --job-name=serve
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.out
# vLLM servers for a training with rollouts, which register in a folder. Each shards its model among
# the GPUs of its job (--gpus-per-node=4), as many as the model's heads allow, or among as many as
# the recipe or --set engine.tensor_parallel_size says:
#   sbatch --array=0-7 slurm/serve.sh RECIPE runs/mine/servers
#   sbatch slurm/grpo_7b.sh --set engine.name=vllm-server \
#     --set engine.servers_folder=runs/mine/servers --set engine.num_servers=8
# They stay until they are cancelled: scancel --name=serve. Settings that change section `engine` of
# the recipe are given to both.
set -euo pipefail
source slurm/job.sh
recipe="${1:?RECIPE and the folder to register in}" folder="${2:?the folder to register in}"
mreason_job "${CLUSTER:-h100}" serve "$recipe" --register "$folder" --host "$(hostname)" \
  --port 0 "${@:3}"
