# bash clean_environment.sh REGEX NAMES COMMAND...: run a command without the variables whose names
# match, but for NAMES, which blanks separate. On the host, before launcher and container.
regex=$1 kept=" $2 "
shift 2
for name in $(compgen -e); do
    if [[ $name =~ $regex && $kept != *" $name "* ]]; then unset "$name"; fi
done
exec "$@"
