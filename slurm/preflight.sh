#!/usr/bin/env bash
# Looks at all nodes of a SLURM job: are they fit for the run? slurm/train.sh does so before every start; by hand:
#
#   salloc --nodes=2 --gpus-per-node=8 slurm/preflight.sh experiment=NAME [overrides]
#
# The nodes' words travel through srun's pipes to one `launch preflight`, which judges them, and its orders go back.
set -euo pipefail

# shellcheck source=slurm/environment.sh
source "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with salloc or sbatch}}/slurm/environment.sh"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -ra srun_args <<<"${CORRAL_SRUN_ARGS:-}"
there=("${python[@]}")
[[ ${CORRAL_SRUN_ARGS:-} != *--container-image* ]] || there=("${CORRAL_PYTHON:-python3}")  # srun enters the container

# A node that leaves early, because it has no Python for one, must not take the others down, and says that it left.
# shellcheck disable=SC2016  # expanded on the nodes
coproc srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}" "${srun_args[@]}" \
  sh -c '"$@"; code=$?; printf "corral-preflight [\"%s\", \"left\", %d]\n" "$SLURMD_NODENAME" $code' sh \
  "${there[@]}" -m launch.preflight.node
srun=$COPROC_PID answers=${COPROC[0]} orders=${COPROC[1]}

code=0
"${python[@]}" -m launch preflight "nodes=$(IFS=,; echo "${nodes[*]}")" "$@" <&"$answers" >&"$orders" || code=$?
exec {orders}>&-  # the nodes leave
for ((tries = 0; tries < 50; tries++)); do
  kill -0 "$srun" 2>/dev/null || exit "$code"
  sleep 0.1
done
kill "$srun"  # a node that waits for a device or a file system does not
exit "$code"
