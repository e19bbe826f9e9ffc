#!/bin/sh
# Counts the instructions of each case in benches/instructions.rs and compares them with benches/baseline.txt.
#
#   benches/instructions.sh          compare; exit 1 if a case takes over 5 % more than the baseline, or has none
#   benches/instructions.sh --save   write the baseline anew
#
# Needs valgrind. Counts differ between processors with other vector units and between compilers: save the baseline anew when
# either changes, in a commit that changes nothing else.
set -eu
cd "$(dirname "$0")/.."
baseline=benches/baseline.txt
limit_percent=5
command -v valgrind >/dev/null || { echo "instructions.sh: valgrind is not installed (apt-get install valgrind)" >&2; exit 2; }

# Symbols, so that callgrind finds the measured function; the engine alone, which is all that is measured.
program=$(CARGO_PROFILE_BENCH_STRIP=none cargo bench --quiet --no-default-features --bench instructions --no-run --message-format=json |
    sed -n 's/.*"name":"instructions".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$program" ] || { echo "instructions.sh: the bench was not built" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for case in $("$program" --list); do
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*instructions*measured*' "$program" "$case" 2>"$work/log" ||
        { cat "$work/log" >&2; exit 2; }
    count=$(sed -n 's/.*Collected : *\([0-9]*\).*/\1/p' "$work/log")
    [ "${count:-0}" -gt 0 ] || { echo "instructions.sh: $case: nothing was collected" >&2; exit 2; }
    echo "$case $count" >>"$work/counts"
done

if [ "${1:-}" = --save ]; then
    cp "$work/counts" "$baseline"
    cat "$baseline"
    exit 0
fi
awk -v limit="$limit_percent" '
    NR == FNR { before[$1] = $2; next }
    !($1 in before) { printf "%-28s %12d  no baseline\n", $1, $2; bad = 1; next }
    {
        change = ($2 - before[$1]) * 100 / before[$1]
        over = change > limit
        bad = bad || over
        printf "%-28s %12d  %+6.1f %%%s\n", $1, $2, change, over ? "  over the limit" : ""
    }
    END { exit bad }
' "$baseline" "$work/counts"
