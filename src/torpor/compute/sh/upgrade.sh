# Upgrades the cluster in old by that in new, which is empty: run in the sandbox of the database, beside the two of them, in the
# directory $WORK. What it says is read line by line (compute/upgradelog.py): lines that begin with @ are its own, all others are those of
# PostgreSQL's programs.
#
# OLD, NEW: where each major's programs are. OLD_OPTIONS, NEW_OPTIONS: what each server is told. COUNT: 1 to count the rows of tables.
# CHECK: 1 to look at every page and index of the new cluster. JOBS: how many databases at once.
set -u
cd "$WORK" || exit 1
mkdir -p s

fail() {
    echo "@failed $1"
    for file in new/pg_upgrade_output.d/*/*.txt; do
        [ -f "$file" ] && echo "@file $file" && cat "$file"
    done
    for file in new/pg_upgrade_output.d/*/log/*.log old.log new.log; do
        [ -f "$file" ] && echo "@log $file" && cat "$file"
    done
    "$NEW/pg_ctl" -D new -m immediate -s stop
    "$OLD/pg_ctl" -D old -m immediate -s stop
    exit 1
}

start() { # programs, cluster, options
    "$1/pg_ctl" -D "$2" -w -t 86400 -s -l "$2.log" -o "$3 -c unix_socket_directories=../s -c port=5432" start || fail "start of the $2 server"
}

stop() { # programs, cluster
    "$1/pg_ctl" -D "$2" -w -t 86400 -s -m fast stop || fail "end of the $2 server"
}

ask() { # programs, what psql is given
    programs=$1
    shift
    PGHOST=$WORK/s PGUSER=torpor "$programs/psql" -XqAt -v ON_ERROR_STOP=1 "$@"
}

facts() { # programs, cluster
    ask "$1" -d postgres -c "SELECT datname FROM pg_database WHERE datallowconn AND datname !~ E'[\\n\\r]' ORDER BY 1" >names || fail "look"
    echo "@facts $2"
    while IFS= read -r name; do
        PGDATABASE=$name ask "$1" -v "count=$COUNT" -f facts.sql || fail "look at $name"
    done <names
    echo "@end"
}

echo "@stage recovering the copy"
start "$OLD" old "$OLD_OPTIONS"
echo "@stage looking at what is there"
facts "$OLD" old
stop "$OLD" old

"$NEW/pg_upgrade" -b "$OLD" -B "$NEW" -d "$WORK/old" -D "$WORK/new" -U torpor --link --no-sync -s "$WORK/s" -j "$JOBS" \
    -o "$OLD_OPTIONS" -O "$NEW_OPTIONS" || fail "pg_upgrade"

echo "@stage comparing"
start "$NEW" new "$NEW_OPTIONS"
facts "$NEW" new
echo "@settings"
ask "$NEW" -d postgres -c "SELECT name FROM pg_settings" || fail "look at settings"
echo "@end"
if [ "$CHECK" = 1 ]; then
    echo "@stage checking every page"
    PGHOST=$WORK/s PGUSER=torpor "$NEW/pg_amcheck" --all --install-missing -j "$JOBS" || fail "pg_amcheck"
fi
if [ -f update_extensions.sql ]; then
    echo "@stage updating extensions"
    echo "@extensions"
    PGHOST=$WORK/s PGUSER=torpor "$NEW/psql" -Xq -d postgres -f update_extensions.sql
    echo "@end"
fi
stop "$NEW" new
echo "@done"
