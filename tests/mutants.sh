#!/usr/bin/env bash
# Switches on each defect that src/mutants.rs knows, one at a time, and sees that a test finds it.
# One build serves all; `tests/mutants.sh M4 R1` runs only those.
set -euo pipefail
cd "$(dirname "$0")/.."

# Name, the test program, its test (all of them where there is none), the defect.
table() {
  cat <<'TABLE'
M1|simulation||the feed's cursor is an id
M2|simulation||transactions ordered by when they began
M3|simulation||a token of another life is taken
M4|simulation||another life goes unnoticed by the feed
M5|simulation||the log is trimmed by the clock
M6|simulation||the horizon is not looked at after the read
M7|simulation||no bell, no poll
M8|simulation||who falls out of a buffer is not told
M9|simulation||pieces of a state carry the id of the whole
M10|lib|postgres::tests::contamination|a connection is pooled in whatever state
M11|lib|auth::tests::hostile|the role none is taken
M12|simulation||what a screen has is told again
M13|relay|policies|rows that a policy hides stay on screens
M14|lib|sse|line breaks in values are not split
M15|simulation||a stream always says that it is up to date
M16|simulation||a token is the highest id so far
R1|simulation||a live stream is told several transactions as one
R2|simulation||a view from before its table changed is shown
R3|simulation||a shared state is followed from too late
R4|simulation||an old token makes a relay read without end
R5|simulation||the questions of a round that broke off are gone
R6|simulation||what was asked in vain is not asked again
R7|simulation||what policies read is not heeded
R8|simulation||a question is answered as of now
R9|simulation||a view that asks is as fresh as the feed
R10|simulation||a screen is compared as it was when it came
R11|simulation||an event is written to a connection that is writing
R12|simulation||a stream does not know what was written for it
R13|simulation||a stream is said to have everything though something waits for it
TABLE
}

program() {
  case $1 in
    lib) echo --lib ;;
    *) echo "--test $1" ;;
  esac
}

# Some defects show in one of some thousand seeds only.
export ROWCAST_SIMULATION_SEEDS=${ROWCAST_SIMULATION_SEEDS:-20000}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# $1 the program, $2 its test; fails as the test does.
check() {
  # shellcheck disable=SC2046
  cargo test --quiet --features mutants $(program "$1") -- ${2:+"$2"} >"$log" 2>&1
}

cargo test --quiet --features mutants --no-run --lib --test relay --test simulation

wanted=("$@")
survived=0 total=0
printf '%-5s %-50s %-14s %s\n' mutant defect 'caught by' after
while IFS='|' read -r name where test defect; do
  if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then
    continue
  fi
  total=$((total + 1))
  begun=$(date +%s.%N)
  if ROWCAST_MUTANT=$name check "$where" "$test"; then
    found=nobody
    survived=$((survived + 1))
  else
    found=${test:-$where}
    # A test that could not run at all has found nothing.
    grep -q 'test result: FAILED' "$log" || { cat "$log"; exit 1; }
  fi
  after=$(awk -v begun="$begun" -v now="$(date +%s.%N)" 'BEGIN { printf "%.1f s", now - begun }')
  printf '%-5s %-50s %-14s %s\n' "$name" "$defect" "$found" "$after"
done < <(table)

# The same tests must pass when nothing is wrong, or they have found nothing.
if ((!${#wanted[@]})); then
  while IFS='|' read -r where test; do
    check "$where" "$test" || { echo "without any defect, $where $test fails:"; cat "$log"; exit 1; }
  done < <(table | cut -d'|' -f2,3 | sort -u)
  echo "without a defect all of these tests pass"
fi
echo "$((total - survived)) of $total caught"
((survived == 0))
