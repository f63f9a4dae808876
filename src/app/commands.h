// The sub-commands: one function each, called by main.cpp with checked options. The value is the exit code of the process;
// an error is printed by main.cpp as one line and decides the exit code by its kind.
#pragma once
#include "base/result.h"
#include "config/options.h"

namespace dg {

// run_bench hands on to run_bench_machine and, in builds with a server, run_bench_serve.
Result<int> run_inspect(const Options& options);
Result<int> run_generate(const Options& options);
Result<int> run_chat(const Options& options);
Result<int> run_eval(const Options& options);
Result<int> run_verify(const Options& options);
Result<int> run_plan(const Options& options);
Result<int> run_tokenize(const Options& options);
Result<int> run_synth(const Options& options);
Result<int> run_serve(const Options& options);
Result<int> run_keys(const Options& options);
Result<int> run_bench(const Options& options);
Result<int> run_bench_machine(const Options& options);
Result<int> run_bench_serve(const Options& options);
Result<int> run_version(const Options& options);

}  // namespace dg
