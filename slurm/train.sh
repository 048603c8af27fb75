#!/usr/bin/env bash
# One training run as a SLURM job, from the repository's root on a file system that all nodes share:
#
#   sbatch --nodes=2 --gpus-per-node=8 --exclusive slurm/train.sh experiment=NAME [overrides]
#
# Options before the script go to SLURM, everything after it to Corral, untouched. Without GPUs CORRAL_NPROC is the
# number of processes per node (1). The run continues from its last good checkpoint whenever the job is requeued.
# Also read: CORRAL_PYTHON, CORRAL_REPOSITORY, CORRAL_MAX_RESTARTS, CORRAL_SRUN_ARGS ("--container-image=...").
#SBATCH --job-name=corral
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=corral-%j.log
set -euo pipefail

cd "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}"  # $0 is a copy in SLURM's spool
if [[ ! -f slurm/environment.sh ]]; then
  echo "corral: $PWD is not the repository; submit from its root or set CORRAL_REPOSITORY" >&2
  exit 66
fi
source slurm/environment.sh

# Asked to stop, by USR1 before the time limit or by TERM: the ranks poll the stop file, checkpoint and leave with 75.
# TERM comes from scancel, or from SLURM when it requeues the job itself: then we do not.
export CORRAL_STOP_FILE=/dev/null
asked='' terminated=''
trap 'asked=1; : >"$CORRAL_STOP_FILE"' USR1
trap 'terminated=1; : >"$CORRAL_STOP_FILE"' TERM

job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
id=$job  # of an array task, only this form names the one task
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}

# The attempt's number and the run's folder; a wrong config ends here, with its sentences and code 78.
begun=$("$python" -m launch begin "$@")
attempt=${begun%%$'\n'*} run_dir=${begun#*$'\n'}
if ((restarts > 0)) && grep -qs '"code": 0,' "$run_dir/exit.json"; then
  echo "corral: finished before this restart; nothing to do"
  exit 0
fi

# Training never prepares. Restartable, and back at once when the corpus is there.
"$python" -m data_prep "$@"

# Where the ranks meet: the first node, by name or, where names do not resolve, by the address SLURM knows.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
if ! getent hosts "$head" >/dev/null; then
  head=$(scontrol -o show node "$head" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
fi
if [[ -z $head ]]; then
  echo "corral: the first node, ${nodes[0]}, has neither a name that resolves nor an address" >&2
  exit 69
fi
export CORRAL_HEAD=$head CORRAL_PORT=$((15000 + (job * 16 + restarts) % 16000))
export CORRAL_ATTEMPT=$attempt CORRAL_STOP_FILE=$run_dir/stop CORRAL_LOG_DIR=$run_dir/logs
rm -f "$CORRAL_STOP_FILE"
[[ -z $asked ]] || : >"$CORRAL_STOP_FILE"

printf 'corral: attempt %s on %s (%s nodes x %s processes), logs in %s\n' \
  "$attempt" "${nodes[*]}" "${#nodes[@]}" "$CORRAL_NPROC" "$run_dir/logs"
read -ra srun_args <<<"${CORRAL_SRUN_ARGS:-}"
srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" \
  --open-mode=append --output="$run_dir/logs/node-%N.log" "${srun_args[@]}" \
  "$python" -m launch.node "$@" &
step=$!
while kill -0 "$step" 2>/dev/null; do  # in the background and in a loop, so that the traps run at once
  wait "$step" || true
done

# srun's status proves nothing (it is 0 after some node failures); the ranks' own records do.
code=0
"$python" -m launch settle "attempt=$attempt" "restarts=$restarts" "world=$((${#nodes[@]} * CORRAL_NPROC))" "$@" || code=$?
rm -f "$CORRAL_STOP_FILE"
if ((code == 75)) && [[ -z $terminated ]]; then
  bad=$run_dir/exit/bad-nodes-$job
  printf 'corral: requeued %(%F %T)T\n' -1
  scontrol requeue "$id"
  if [[ -s $bad ]]; then
    scontrol update "JobId=$id" "ExcNodeList=$(sort -u "$bad" | paste -sd,)" || true
  fi
  sleep 60  # SLURM ends this script; leaving before it would count as the job's end
fi
exit "$code"
