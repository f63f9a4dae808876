// `dougong verify DIR`: the report of verify.h for people or as JSON.
#include <fmt/core.h>

#include <cstdio>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/verify.h"
#include "base/json.h"

namespace dg {
namespace {

std::string joined(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += (text.empty() ? "" : " ") + std::to_string(id);
  return text;
}

void print_report(const VerifyReport& report) {
  fmt::print("{}, weights {}\n", report.backend, report.dtype == "auto" ? "as published" : report.dtype);
  for (const VerifyPrompt& p : report.prompts) {
    fmt::print("  {} ({} tokens): {}{}\n", p.name, p.tokens, p.passed ? "ok" : "FAILED: ", p.failure);
    fmt::print(
        "    max |dlogit| {:.3g} of max |logit| {:.3g}; KL mean {:.2g}, median {:.2g}, max {:.2g}; argmax {} of {}, decided {} of {}\n",
        p.max_logit_difference, p.max_logit, p.mean_kl, p.median_kl, p.max_kl, p.argmax_agreed, p.tokens, p.agreed, p.decided);
    fmt::print("    hidden states: {}, largest relative difference {:.2g}\n",
               p.first_bad_layer < 0 ? std::string("all within tolerance")
                                     : fmt::format("layer {} is the first to leave tolerance", p.first_bad_layer),
               p.worst_hidden);
    if (!p.expected_greedy.empty()) {
      bool same = p.greedy == p.expected_greedy;
      fmt::print("    greedy: {}{}\n", joined(p.greedy), same ? " (equal)" : "");
      if (!same) fmt::print("    expected: {} (differs)\n", joined(p.expected_greedy));
    }
    if (!p.chunk_equal) fmt::print("    chunked prefill: differs from whole prefill\n");
  }
  if (report.checked_ops > 0)
    fmt::print("  checked {} operations: {}\n", report.checked_ops,
               report.checked_difference.empty() ? "no difference" : report.checked_difference);
}

Json as_json(const VerifyReport& report) {
  Json out{{"dtype", report.dtype}, {"backend", report.backend}, {"passed", report.passed()}};
  if (report.checked_ops > 0) out["checked"] = {{"operations", report.checked_ops}, {"first_difference", report.checked_difference}};
  out["prompts"] = Json::array();
  for (const VerifyPrompt& p : report.prompts)
    out["prompts"].push_back({{"name", p.name},
                              {"tokens", p.tokens},
                              {"passed", p.passed},
                              {"failure", p.failure},
                              {"max_logit_difference", p.max_logit_difference},
                              {"max_logit", p.max_logit},
                              {"mean_kl", p.mean_kl},
                              {"median_kl", p.median_kl},
                              {"max_kl", p.max_kl},
                              {"argmax_agreed", p.argmax_agreed},
                              {"decided", p.decided},
                              {"decided_agreed", p.agreed},
                              {"first_bad_layer", p.first_bad_layer},
                              {"worst_hidden", p.worst_hidden},
                              {"greedy", p.greedy},
                              {"expected_greedy", p.expected_greedy},
                              {"greedy_equal", p.greedy == p.expected_greedy},
                              {"chunk_equal", p.chunk_equal}});
  return out;
}

}  // namespace

Result<int> run_verify(const Options& options) {
  VerifyOptions verify;
  verify.open = open_options(options);
  verify.chunk = options.integer("chunk");
  // Both paths unless one is asked for: exact arithmetic first, then the weights as they are served.
  std::vector<std::string> paths{"float32", "auto"};
  if (options.given("dtype") || !verify.open.quantization.empty()) paths = {verify.open.dtype};
  Json reports = Json::array();
  bool passed = true;
  for (const std::string& dtype : paths) {
    verify.open.dtype = dtype;
    auto report = verify_checkpoint(options.arguments()[0], verify);
    if (!report.ok()) return report.error();
    passed = passed && report->passed();
    if (options.flag("json")) reports.push_back(as_json(*report));
    else print_report(*report);
  }
  if (options.flag("json")) fmt::print("{}\n", Json{{"directory", options.arguments()[0]}, {"passed", passed}, {"paths", reports}}.dump());
  else fmt::print("{}: {}\n", options.arguments()[0], passed ? "verified" : "NOT verified");
  return passed ? 0 : 1;
}

}  // namespace dg
