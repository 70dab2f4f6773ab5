# bash clean_environment.sh REGEX NAMES COMMAND...: run a command without the variables whose names
# match, but for NAMES, which blanks separate, and without core dumps, each of which is as large as a
# process's memory and can fill a project. On the host, before launcher and container.
regex=$1 kept=" $2 "
shift 2
for name in $(compgen -e); do
    if [[ $name =~ $regex && $kept != *" $name "* ]]; then unset "$name"; fi
done
ulimit -S -c 0 # srun passes it on to all processes
exec "$@"
