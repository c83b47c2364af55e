#!/bin/sh
# Slurm and munge from Debian's packages. Says in its last line why it can't.
set -e
if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then exit 0; fi
[ "$(id -u)" = 0 ] || { echo "Slurm is not installed, and only root may install it"; exit 1; }
[ -f /etc/debian_version ] && command -v apt-get >/dev/null || { echo "Slurm is not installed, and this is no Debian"; exit 1; }
exec 9>/tmp/qtarget-slurm-install.lock
flock 9  # two test processes may want it at once
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    { echo "apt-get can't install slurm-wlm and munge here"; exit 1; }
