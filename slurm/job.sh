# Sourced by the job scripts: runs one `mreason` command inside a SLURM job.
#
#   mreason_job CLUSTER VERB [ARGUMENT]...
#
# Before the time limit SLURM sends USR1 (--signal=B:USR1@...): the run saves and leaves with 75, and
# the job goes back into the queue, as it does when a node is lost. 0 is done, all else gives up.
# shellcheck shell=bash

say() { printf '%s job %s, attempt %s: %s\n' "$(date +%T)" "$SLURM_JOB_ID" \
  "$((${SLURM_RESTART_COUNT:-0} + 1))" "$*" >&2; }

give_up() { say "$*"; exit 1; }

# The one value that is needed before there is a python to read the file with.
activate() {
  local file="$1" command
  command="$(sed -n 's/^activate: *//p' "$file" | sed 's/ *#.*$//; s/^"\(.*\)"$/\1/')"
  [ -z "$command" ] || eval "$command" || give_up "'$command' failed; it stands in $file"
  python -c 'import megatron_reason' || give_up \
    "python ($(command -v python || echo none)) has no megatron_reason; 'activate' in $file chooses it"
}

# Allocation wins over recipe: what sbatch was given is what is used. A job that has its nodes for
# itself is given their GPUs even where it asks for none, so the cluster's file decides.
layout() {
  printf -- '--set\nlaunch.cluster=%s\n--set\nlaunch.nodes=%s\n' "$1" "${SLURM_JOB_NUM_NODES:-1}"
  [ "$gpus_per_node" = 0 ] || [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] ||
    printf -- '--set\nlaunch.processes=%s\n' "$SLURM_GPUS_ON_NODE"
}

# A server has no layout: it shards its model among the GPUs that the job got, unless it is told.
shards() {
  [ "$gpus_per_node" = 0 ] || [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] ||
    printf -- '--gpus\n%s\n' "$SLURM_GPUS_ON_NODE"
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
    give_up "requeued ${SLURM_RESTART_COUNT} times (max_requeues in the cluster's file); stopping"
  fi
  # A job that was cancelled is told to stop, too, and must not come back.
  scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING ' || exit 75
  say "back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || exit 75
  sleep 120 # until SLURM ends this script
  exit 75
}

mreason_job() {
  local cluster="$1" verb="$2" child status
  shift 2
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "this is a job script: submit it with sbatch (SLURM_JOB_ID is not set)" >&2
    exit 1
  fi
  local file="slurm/clusters/$cluster.yaml" settings arguments=()
  [ "${cluster%.yaml}" = "$cluster" ] || file="$cluster"
  [ -r "$file" ] || give_up "there is no $file; submit from the repository, with CLUSTER=<name>"
  activate "$file"
  settings="$(python -m megatron_reason.launch.clusters "$cluster")" || give_up "see above"
  local max_requeues=0 gpus_per_node=0
  eval "$settings"
  if [ "$verb" = serve ]; then
    mapfile -t arguments < <(shards)
    arguments+=("$@")
  else
    mapfile -t arguments < <(layout "$cluster")
    arguments=("$@" "${arguments[@]}")
  fi

  say "mreason $verb $* (${SLURM_JOB_NUM_NODES:-1} nodes: ${SLURM_JOB_NODELIST:-})"
  python -m megatron_reason.cli.app "$verb" "${arguments[@]}" &
  child=$!
  trap 'say "told to stop"; kill -USR1 "$child" 2>/dev/null || true' USR1 TERM
  # A trapped signal ends `wait` early; asked again, it knows how the child ended.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  status=0
  wait "$child" || status=$?
  trap - USR1 TERM
  case $status in
    0) say "done" ;;
    75 | 138 | 143) requeue ;; # asked to stop: saved, or not yet ready to hear it (USR1, TERM)
    *) give_up "failed with exit code $status; the reason stands above, further logs in the run's logs/" ;;
  esac
}
