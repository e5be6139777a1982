#!/bin/sh
# LSF's esub of distrib, as the user who submits: esub IMAGE. For LSF_SERVERDIR.
DISTRIB_LSF_RESOURCES=@KNOWN@
export DISTRIB_LSF_RESOURCES
exec @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks lsf esub "$@"
