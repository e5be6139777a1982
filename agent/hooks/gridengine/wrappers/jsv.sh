#!/bin/sh
# Grid Engine's server JSV. It must answer within seconds and never be away: one that ends costs every
# submission of the cell. Without its interpreter, jobs that name no image go on as before.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
# A word on standard error, the shell's too, refuses the submission.
exec 2>/dev/null
@PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks gridengine jsv && exit 0
image=0
while read -r word rest; do
    case $word in
        QUIT) exit 0 ;;
        START)
            image=0
            echo STARTED ;;
        PARAM)
            case " $rest" in ' ac vm_name='* | ' ac '*,vm_name=*) image=1 ;; esac ;;
        BEGIN)
            if [ $image = 1 ]; then
                echo 'RESULT STATE REJECT_WAIT images cannot be looked up at the moment: submit it again later'
            else
                printf 'ENV DEL VM_IMG\nENV DEL VM_MEM_MIB\nRESULT STATE CORRECT\n'
            fi
            # Perhaps it is back.
            exec "$0" ;;
    esac
done
