#!/bin/sh
# Tells slurmctld which images this node holds: for HealthCheckProgram, or a timer. Always ends with 0.
PATH=@SLURM@:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
[ -x @PYTHON@ ] || exit 0
timeout -k 5 30 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks slurm features ${SLURMD_NODENAME:+--node "$SLURMD_NODENAME"}
exit 0
