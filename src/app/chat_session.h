// The conversation of `dougong chat`, apart from the terminal: messages, the settings that /commands change, and generation
// that reuses the cache of the turns before.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/answer_printer.h"
#include "app/model_options.h"

namespace dg {

struct ChatTurn {
  std::string role, content, reasoning;
};

class ChatSession {
 public:
  ChatSession(const Options& options, OpenedModel& model);

  // Answers `text`, printing as it goes. A turn that fails (the prompt no longer fits) or is interrupted before any of the
  // answer came leaves the conversation as it was.
  Result<GenerateResult> answer(const std::string& text, const AnswerStyle& style, const std::atomic<bool>& cancel);

  void reset();  // forgets the messages, keeps the system prompt
  void set_system(std::string text) { system_ = std::move(text); }
  void set_thinking(std::optional<bool> thinking) { chat_.thinking = thinking; }
  const std::vector<ChatTurn>& turns() const { return turns_; }
  const std::string& system() const { return system_; }

  // {"model", "messages": [{role, content, reasoning_content?}]}
  Result<void> save(const std::string& path) const;
  std::string statistics() const;  // of the whole conversation, one line
  const SamplingParams& sampling() const { return sampling_; }

 private:
  Json messages() const;

  const Options& options_;
  OpenedModel& model_;
  Generator generator_;
  ChatOptions chat_;
  SamplingParams sampling_;
  std::string system_;
  std::vector<ChatTurn> turns_;
  int64_t answers_ = 0, prompt_tokens_ = 0, cached_tokens_ = 0, output_tokens_ = 0;
  double prefill_s_ = 0, decode_s_ = 0;
};

}  // namespace dg
