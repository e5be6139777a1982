#!/bin/sh
# LSF's elim of distrib: reports for ever what this host holds. For LSF_SERVERDIR.
exec @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks lsf elim
