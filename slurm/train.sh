#!/usr/bin/env bash
# Trains one run as a SLURM job. Submit it from the repository's root on a file system that all nodes share:
#
#   sbatch --nodes=2 --gpus-per-node=8 --exclusive --mem=0 slurm/train.sh experiment=NAME [overrides]
#
# SLURM gets the options before the script; Corral gets everything after it, unchanged. Without GPUs, CORRAL_NPROC is
# the number of processes per node (1). After a requeue, the run continues from its last good checkpoint.
# Other variables: CORRAL_PYTHON, CORRAL_REPOSITORY, CORRAL_MAX_RESTARTS, CORRAL_SRUN_ARGS ("--container-image=..."),
# CORRAL_MIN_NODES (with --nodes=2-4: 2), CORRAL_SWEEP (folder of a job array's arguments), CORRAL_PREFLIGHT (0:
# no look at the nodes), and environment.sh's.
#SBATCH --job-name=corral
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=corral-%j.log
set -euo pipefail

scripts=${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}/slurm  # $0 is a copy in SLURM's spool
if [[ ! -f $scripts/environment.sh ]]; then
  echo "corral: ${scripts%/slurm} is not the repository; submit from its root or set CORRAL_REPOSITORY" >&2
  exit 66
fi
# shellcheck source=slurm/environment.sh
source "$scripts/environment.sh"

# USR1 (before the time limit) and TERM ask the run to stop: the ranks poll the stop file, checkpoint and exit with 75.
# TERM comes from scancel, or from SLURM when it requeues the job itself; then this script does not requeue.
# Preparation, which goes on where it was, is ended.
export CORRAL_STOP_FILE=/dev/null
asked='' terminated='' preparing=''
trap 'asked=1; : >"$CORRAL_STOP_FILE"; [[ -z $preparing ]] || kill "$preparing"' USR1
trap 'terminated=1; : >"$CORRAL_STOP_FILE"; [[ -z $preparing ]] || kill "$preparing"' TERM

ended() {  # PID: wait for it in the background, so that the traps run at once; its exit status
  local status=0
  while kill -0 "$1" 2>/dev/null; do
    status=0
    wait "$1" || status=$?
  done
  return "$status"
}

requeue() {  # [NODE...]: without these nodes. SLURM ends this script; an exit before that would end the job
  local excluded tries
  excluded=$(IFS=,; echo "$*")
  trap '' TERM  # which SLURM sends to this script and its children, as soon as it requeues the job
  printf 'corral: requeued %(%F %T)T%s\n' -1 "${excluded:+ without $excluded}"
  scontrol requeue "$id"
  for ((tries = 0; tries < 60; tries++)); do
    [[ -z $excluded ]] || ! scontrol update "JobId=$id" "ExcNodeList=$excluded" 2>/dev/null || excluded=''
    sleep 1
  done
  exit 75
}

job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
id=$job  # for an array task, only the form below identifies the task
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}

# A task of a job array has its arguments in a file.
[[ -z ${CORRAL_SWEEP:-} ]] || set -- "@$CORRAL_SWEEP/.arguments-of-job-$SLURM_ARRAY_TASK_ID"

# Prints the attempt's number and the run's folder, and a word that stands for arguments with a secret: every user of a
# node reads command lines. For a wrong config, or a time limit too short for a few steps, says so and exits with 78.
begun=$({ (($# == 0)) || printf '%s\0' "$@"; } | "${python[@]}" -m launch begin @/dev/stdin)
mapfile -t begun <<<"$begun"
attempt=${begun[0]} run_dir=${begun[1]}
[[ -z ${begun[2]:-} ]] || set -- "${begun[2]}"
if ((restarts > 0)) && grep -qs '"code": 0,' "$run_dir/exit.json"; then
  echo "corral: nothing to do: $run_dir finished before this restart"
  exit 0
fi

# Training never prepares data. This command can be restarted, and returns at once if the corpus is complete.
"${python[@]}" -m data_prep "$@" &
preparing=$! code=0
ended "$preparing" || code=$?
preparing=''
if ((code)); then
  [[ -z $asked || -n $terminated ]] || requeue
  exit "$code"
fi

# The ranks connect to the first node, by its name or, if the name does not resolve, by its address from SLURM.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
if ! getent hosts "$head" >/dev/null; then
  head=$(scontrol -o show node "$head" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
fi
if [[ -z $head ]]; then
  echo "corral: the name of the first node, ${nodes[0]}, does not resolve, and SLURM has no address of the node" >&2
  exit 69
fi
export CORRAL_HEAD=$head CORRAL_PORT=$((15000 + (job * 16 + restarts) % 16000))
export CORRAL_ATTEMPT=$attempt CORRAL_STOP_FILE=$run_dir/exit/stop-$attempt CORRAL_LOG_DIR=$run_dir/logs
rm -f "$CORRAL_STOP_FILE"
[[ -z $asked ]] || : >"$CORRAL_STOP_FILE"

printf 'corral: attempt %s on %s (%s nodes x %s processes), logs in %s\n' \
  "$attempt" "${nodes[*]}" "${#nodes[@]}" "$CORRAL_NPROC" "$run_dir/logs"

# All nodes are looked at first. A bad one is named, and the next start leaves it out.
code=0
if [[ ${CORRAL_PREFLIGHT:-1} != 0 ]]; then
  "$scripts/preflight.sh" "attempt=$attempt" "$@" &
  ended $! || code=$?
fi
if ((code == 0)); then
  read -ra srun_args <<<"${CORRAL_SRUN_ARGS:-}"
  there=("${python[@]}")
  [[ ${CORRAL_SRUN_ARGS:-} != *--container-image* ]] || there=("${CORRAL_PYTHON:-python3}")  # srun enters the container
  srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" \
    --open-mode=append --output="$run_dir/logs/node-%N.log" "${srun_args[@]}" \
    "${there[@]}" -m launch.node "$@" &
  ended $! || true
fi

# srun's exit status is not reliable (it is 0 after some node failures); the ranks' records are.
code=0
"${python[@]}" -m launch settle "attempt=$attempt" "restarts=$restarts" "world=$((${#nodes[@]} * CORRAL_NPROC))" "$@" || code=$?
rm -f "$CORRAL_STOP_FILE"
if ((code == 75)) && [[ -z $terminated ]]; then
  excluded=()
  if [[ -s $run_dir/exit/bad-nodes-$job ]]; then  # beside the nodes that the job left out before
    before=$(scontrol -o show job "$id" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    mapfile -t excluded < <({ [[ $before == '(null)' ]] || scontrol show hostnames "$before"
      cat "$run_dir/exit/bad-nodes-$job"; } | sort -u)
    left=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format=%N | sort -u |
      grep -cvxF "$(printf '%s\n' "${excluded[@]}")") || true
    if ((left < ${CORRAL_MIN_NODES:-${#nodes[@]}})); then
      echo "corral: ends, because ${CORRAL_MIN_NODES:-${#nodes[@]}} nodes are needed and partition $SLURM_JOB_PARTITION has $left without" \
        "${excluded[*]}; have them repaired ($run_dir/logs says what is wrong) and submit the same command" >&2
      exit 69
    fi
  fi
  requeue "${excluded[@]}"
fi
exit "$code"
