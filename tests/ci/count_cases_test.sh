#!/usr/bin/env bash
# The counter behind the closing line of `make test` (tools/ci/count_cases.awk) on logs written here: a test that fails,
# dies, times out or runs nothing must never look like success.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
number=0
status=0

# check NAME EXPECTED_LAST_LINE [WORDS THAT THE REPORT MUST HOLD]: counts $folder/ctest and $folder/log.
check() {
  number=$((number + 1))
  local report
  report=$(awk -f tools/ci/count_cases.awk "$folder/ctest" "$folder/log")
  if [ "$(tail -n 1 <<<"$report")" = "$2" ] && grep -qF -- "${3:-}" <<<"$report"; then
    echo "ok $number - $1"
  else
    echo "not ok $number - $1: expected '$2' and '${3:-}', found:"
    sed 's/^/# /' <<<"$report"
    status=1
  fi
}

# one_test CTEST_REASON OUTPUT: a run of one test named t; an empty reason = ctest calls it passed.
one_test() {
  echo "ctest says" >"$folder/ctest"
  [ -z "$1" ] || printf '\t  1 - t (%s)\n' "$1" >>"$folder/ctest"
  printf '1/1 Testing: t\n1/1 Test: t\nCommand: "t"\nOutput:\n---\n%s\n<end of output>\nTest time =   0.50 sec\n' "$2" >"$folder/log"
}

gtest_end='[==========] 5 tests from 2 test suites ran. (3 ms total)'
echo "1..12"
one_test "" "[ RUN      ] A.a
[       OK ] A.a (0 ms)
$gtest_end
[  PASSED  ] 5 tests."
check "GoogleTest summary" "5 0 0"

one_test Failed "[ RUN      ] A.a
$gtest_end
[  PASSED  ] 2 tests.
[  SKIPPED ] 1 test, listed below:
[  SKIPPED ] A.c
[  FAILED  ] 2 tests, listed below:
[  FAILED  ] A.b
[  FAILED  ] B.d, where GetParam() = 3
 2 FAILED TESTS"
check "GoogleTest with failures and a skip" "2 2 1" "  t: A.b"

one_test "Subprocess aborted" "[ RUN      ] A.a
[       OK ] A.a (0 ms)
[ RUN      ] A.b"
check "GoogleTest that dies in the middle" "1 1 0" "A.b (ended in the middle)"

one_test "" "noise without a newline[       OK ] A.a (0 ms)
$gtest_end
[  PASSED  ] 0 tests."
check "GoogleTest that runs nothing" "0 1 0" "no test case ran"

one_test "" "[ RUN      ] A.a
$gtest_end
[  PASSED  ] 1 test.

  YOU HAVE 2 DISABLED TESTS"
check "disabled tests are skipped ones" "1 0 2"

one_test "" "1..3
ok 1 - a
ok 2 - b # SKIP no npm
ok 3"
check "TAP" "2 0 1" "ok 2 - b # SKIP no npm"

one_test Failed "1..2
ok 1 - a
not ok 2 - b"
check "TAP with a failure" "1 1 0" "not ok 2 - b"

one_test "" "1..3
ok 1 - a"
check "TAP that ends before its plan" "1 1 0" "1 of 3 planned"

one_test "" "hello"
check "a program that only has an exit status" "1 0 0"

one_test Timeout ""
check "timeout" "0 1 0" "t: Timeout"

one_test "Not Run" ""
check "executable that was not built" "0 1 0" "t: Not Run"

printf 'a\n' >"$folder/ctest"
: >"$folder/log"
check "empty log" "0 0 0"
exit $status
