#!/bin/sh
# Counts the instructions of each case in benches/instructions.rs and compares them with benches/baseline.txt.
#
#   benches/instructions.sh          compare; exit 1 if a case takes over 5 % more than its baseline, or is not in it
#   benches/instructions.sh --save   write the baseline for this machine's kind anew: in a commit that says what it is for
#
# A count depends on the compiler, the C library (its memcpy) and valgrind, and, since valgrind shows a program a processor of its
# own making, on nothing of the real one but whether it has AVX2. So the baseline has a section for each such combination. Where there
# is none for this one, the counts are printed and nothing is compared; --save adds the section. Needs valgrind.
set -eu
cd "$(dirname "$0")/.."
baseline=benches/baseline.txt
limit_percent=5
command -v valgrind >/dev/null || { echo "instructions.sh: valgrind is not installed (apt-get install valgrind)" >&2; exit 2; }

avx2=no-avx2
if grep -qw avx2 /proc/cpuinfo; then avx2=avx2; fi
kind="$(rustc --version | cut -d ' ' -f 1,2), $(rustc --print host-tuple), $(ldd --version | head -n 1 | sed 's/.* /libc /'), $(valgrind --version), $avx2"

# Symbols, so that callgrind finds the measured function; the engine alone, which is all that is measured; and no profile, with which
# the same code would count otherwise.
program=$(WEIR_PROFILE=off CARGO_PROFILE_BENCH_STRIP=none cargo bench --quiet --no-default-features --bench instructions --no-run --message-format=json |
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

# A section is its kind in brackets and the counts up to the next one. 1: this kind's lines, 0: all others.
section() { awk -v kind="[$kind]" -v wanted="$1" '/^\[/ { here = ($0 == kind) } here == wanted' "$baseline"; }

if [ "${1:-}" = --save ]; then
    section 0 >"$work/others"
    { cat "$work/others"; echo "[$kind]"; cat "$work/counts"; } >"$baseline"
    cat "$baseline"
    exit 0
fi
section 1 | sed 1d >"$work/baseline"
if [ ! -s "$work/baseline" ]; then
    cat "$work/counts"
    echo "instructions.sh: $baseline has no section [$kind]: nothing was compared. benches/instructions.sh --save adds it."
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
    END {
        if (bad) print "instructions.sh: over " limit " % more than the baseline, or not in it. Where that is meant: benches/instructions.sh --save"
        exit bad
    }
' "$work/baseline" "$work/counts"
