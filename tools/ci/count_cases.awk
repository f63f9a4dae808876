# Counts test cases: awk -f count_cases.awk CTEST_OUTPUT LastTest.log. The first file is what ctest printed: its closing list
# alone says truly which tests failed and why ("2 - name (Timeout)"). The second has the whole output of every test. Prints a
# table, the names of the failed and skipped cases, and as its last line "passed failed skipped".
#   GoogleTest: the summary that the executable prints at its end. No summary = it died: the cases that had
#   finished count, and the one that was running has failed.
#   TAP: lines `ok` / `not ok`, `# SKIP` after an `ok`. A plan `1..N` must be met.
#   Neither: a program whose exit status is its answer counts as one case.
function begin(name) {
  finish()
  test = name; open = 1; seconds = 0; plan = -1; tap = 0; running = ""
  cases_started = g_summary = g_passed = g_failed = g_skipped = l_passed = l_failed = l_skipped = t_passed = t_failed = t_skipped = 0
}
function finish(    p, f, s) {
  if (!open) return
  open = 0
  status = test in reasons ? reasons[test] : "Passed"
  if (g_summary) { p = g_passed; f = g_failed; s = g_skipped }
  else if (cases_started) {
    p = l_passed; f = l_failed; s = l_skipped
    if (running != "") { f++; failures = failures "\n  " test ": " running " (ended in the middle)" }
  }
  p += t_passed; f += t_failed; s += t_skipped
  if (plan >= 0 && plan != tap) { f++; failures = failures "\n  " test ": " tap " of " plan " planned checks ran" }
  if (status == "Passed" && p + f + s == 0 && !g_summary) p = 1
  if (status == "Passed" && p + f + s == 0) { f = 1; failures = failures "\n  " test ": no test case ran" }
  if (status == "Skipped" && f == 0 && p + s == 0) s = 1
  if (status != "Passed" && status != "Skipped" && f == 0) { f = 1; failures = failures "\n  " test ": " status }
  rows = rows sprintf("%-34s %7d %7d %8d %9.1f\n", test, p, f, s, seconds)
  passed += p; failed += f; skipped += s
}
function count_word(line) { match(line, /[0-9]+/); return substr(line, RSTART, RLENGTH) + 0 }

FNR == NR {
  if ($0 ~ /^[ \t]+[0-9]+ - .* \([A-Za-z ]+\)$/) {
    line = $0; sub(/^[ \t]+[0-9]+ - /, "", line)
    reason = line; sub(/^.* \(/, "", reason); sub(/\)$/, "", reason)
    sub(/ \([A-Za-z ]+\)$/, "", line); reasons[line] = reason
  }
  next
}
/^[0-9]+\/[0-9]+ Test(ing)?: / { name = $0; sub(/^[0-9]+\/[0-9]+ Test(ing)?: /, "", name); if (!open || name != test) begin(name); next }
!open { next }
/^\[ RUN      \] / { cases_started = 1; running = $4; next }
/^\[==========\] .* ran\./ { g_summary = 1; running = ""; next }
g_summary && /^\[  PASSED  \] [0-9]+ tests?\./ { g_passed = count_word($0); next }
g_summary && /^\[  SKIPPED \] [0-9]+ tests?, listed below/ { g_skipped = count_word($0); next }
g_summary && /^\[  FAILED  \] [0-9]+ tests?, listed below/ { g_failed = count_word($0); next }
g_summary && /^\[  FAILED  \] / { failures = failures "\n  " test ": " $4; next }
g_summary && /^\[  SKIPPED \] / { skips = skips "\n  " test ": " $4; next }
g_summary && /YOU HAVE [0-9]+ DISABLED TEST/ { g_skipped += count_word($0); skips = skips "\n  " test ": " count_word($0) " disabled"; next }
/\[       OK \] / { l_passed++; running = ""; next }
/^\[  FAILED  \] .* ms\)$/ { l_failed++; running = ""; next }
/^\[  SKIPPED \] .* ms\)$/ { l_skipped++; running = ""; next }
/^1\.\.[0-9]+/ { plan = substr($1, 4) + 0; next }
/^ok( |$)/ { tap++; if (tolower($0) ~ /# *skip/) { t_skipped++; skips = skips "\n  " test ": " $0 } else t_passed++; next }
/^not ok( |$)/ { tap++; t_failed++; failures = failures "\n  " test ": " $0; next }
/^Test time = / { seconds = $4; next }
END {
  finish()
  printf "%-34s %7s %7s %8s %9s\n%s", "test", "passed", "failed", "skipped", "seconds", rows
  if (failures != "") print "failed:" failures
  if (skips != "") print "skipped:" skips
  print passed + 0, failed + 0, skipped + 0
}
