// OpenAI's Responses API as text: the response object and the events of its stream.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "server/api/answer_stream.h"

namespace dg::api {

struct ResponseShape {
  std::string id;
  int64_t created_s = 0;
  std::string settings;  // the members that repeat the request: `"model":...,"temperature":...`, no comma at the ends
};

class ResponsesWriter : public AnswerWriter {
 public:
  explicit ResponsesWriter(ResponseShape shape) : shape_(std::move(shape)) {}
  void begin(const AnswerTotals& totals, std::string& out) override;
  void event(const Answer& answer, const OutputEvent& event, const AnswerTotals& totals, std::string& out) override;
  void end_answer(const Answer& answer, const AnswerTotals& totals, std::string& out) override;
  void end(std::span<const Answer> answers, const AnswerTotals& totals, std::string& out) override;
  void fail(const ApiError& error, const AnswerTotals& totals, std::string& out) override;
  std::string body(std::span<const Answer> answers, const AnswerTotals& totals) override;

 private:
  enum Kind { kNone, kReasoning, kMessage, kCall };

  // The open item of a stream. Items are numbered as they open.
  struct Item {
    Kind kind = kNone;
    std::string id, call_id, name, text;
  };
  void send(std::string_view type, std::string_view members, std::string& out);
  void open(Kind kind, std::string_view name, std::string& out);
  void close(bool complete, std::string& out);
  void delta(std::string_view type, std::string_view text, std::string& out);
  std::string item_json(const Item& item, std::string_view status) const;
  std::string response_json(std::string_view status, std::string_view output, const AnswerTotals* totals, std::string_view error,
                            bool incomplete) const;
  Item new_item(Kind kind, std::string_view name) const;

  const ResponseShape shape_;
  int64_t sequence_ = 0;
  Item item_;
  int index_ = 0;       // of the open item in the output
  std::string output_;  // closed items, comma separated
};

}  // namespace dg::api
