# Runs one PostgreSQL server and sees that it does not outlive rowcast.
#
#   sh guardian.sh LOG POSTGRES ARGUMENTS...
#
# Standard input is a pipe that rowcast holds and never writes to. Its end means that rowcast let
# go or died, by kill -9 too: then the server gets ten seconds for a fast stop, and after that an
# immediate one, which costs it a recovery at its next start and nothing else. When the server
# ends by itself this script ends with its status, and rowcast decides what to do.

log=$1
postgres=$2
shift 2
umask 077
if [ -f "$log" ] && [ "$(wc -c <"$log")" -gt 16777216 ]; then
    mv -f "$log" "$log.old"
fi
exec 3<&0 </dev/null >>"$log" 2>&1

"$postgres" "$@" 3<&- &
server=$!

# A process of its own, so that it does its work even when this shell is killed.
(
    while read -r _ <&3; do :; done
    kill -INT "$server"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        sleep 1
        kill -0 "$server" || exit 0
    done
    kill -QUIT "$server"
) 2>/dev/null &
watcher=$!
exec 3<&-

wait "$server"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
