// Reads one streamed answer of OpenAI's API (server-sent events): counts and times the events that carry text, and takes the
// token counts that the server reports. Bytes may come in any pieces.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/bench_serve.h"

namespace dg {

class BenchStream {
 public:
  explicit BenchStream(bool chat) : chat_(chat) {}

  // `now_s` since the request began. False: the stream is no good; error_kind() and error() say why.
  bool push(std::string_view bytes, double now_s);
  // At the end of the answer.
  bool finish();

  bool done() const { return done_; }  // data: [DONE]
  int64_t text_events() const { return text_events_; }
  const std::string& error_kind() const { return error_kind_; }
  const std::string& error() const { return error_; }
  void fill(BenchOutcome& outcome) const;

 private:
  bool line(std::string_view text);
  bool event();
  bool has_text(const SortedJson& choice) const;
  bool fail(std::string kind, std::string message);

  const bool chat_;
  double now_s_ = 0;
  std::string partial_;  // line
  std::string data_;     // of the event being read
  bool has_data_ = false;
  bool done_ = false, finished_ = false;  // finished: a finish_reason came
  int64_t text_events_ = 0;
  double first_s_ = 0, last_s_ = 0;
  std::vector<double> gaps_s_;
  int64_t prompt_tokens_ = -1, completion_tokens_ = -1;
  std::string error_kind_, error_;
};

}  // namespace dg
