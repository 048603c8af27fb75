#!/usr/bin/env bash
# Installs what tests/slurm needs on Debian or Ubuntu (about 4 MB), where it is not there yet. Needs root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=''
for program in slurmctld slurmd munged ip unshare; do # one by one: `command -v a b` is content with either
  command -v "$program" >/dev/null || missing=1
done
[[ -n $missing ]] || exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 util-linux
