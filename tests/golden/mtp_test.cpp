// The multi-token prediction module of mini-r1: on the model's own greedy output nearly every draft is right (its card
// says 99.1 % over the evaluation set), which only happens when module, cache and positions are used as trained.
#include <gtest/gtest.h>

#include <algorithm>

#include "app/open_model.h"

namespace dg {
namespace {

size_t argmax(const float* x, int64_t n) { return static_cast<size_t>(std::max_element(x, x + n) - x); }

TEST(Mtp, DraftsAgreeWithGreedyText) {
  OpenOptions options{.threads = 2, .max_model_len = 512, .max_step_tokens = 512, .max_logit_rows = 512, .progress = false};
  const char* root = std::getenv("DOUGONG_SOURCE_DIR");
  auto opened = open_model(std::string(root ? root : DG_SOURCE_DIR) + "/models/mini-r1", options);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  OpenedModel& m = **opened;
  ASSERT_EQ(m.model->mtp_modules(), 1);
  int64_t right = 0, drafts = 0;
  for (const char* question : {"What is 12 + 30?", "Calculate 515 plus 4.", "What is the capital of France?", "Is 17 a prime number?"}) {
    std::vector<int32_t> ids =
        m.tokenizer->encode(std::string("<\xef\xbd\x9c"
                                        "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c><\xef\xbd\x9cUser\xef\xbd\x9c>") +
                                question +
                                "<\xef\xbd\x9c"
                                "Assistant\xef\xbd\x9c><think>",
                            {.add_special = false});
    size_t prompt = ids.size();
    BlockTable blocks(m.executor->kv());
    StepSequence step{.ids = ids, .blocks = &blocks};
    auto first = m.executor->run({&step, 1});
    ASSERT_TRUE(first.ok());
    auto next = static_cast<int32_t>(argmax(first->row(0), first->logits.cols()));
    while (ids.size() < 300 && std::find(m.eos.begin(), m.eos.end(), next) == m.eos.end()) {
      ids.push_back(next);
      StepSequence one{.ids = {&ids.back(), 1}, .first_position = static_cast<int64_t>(ids.size()) - 1, .blocks = &blocks, .decode = true};
      auto result = m.executor->run({&one, 1});
      ASSERT_TRUE(result.ok());
      next = static_cast<int32_t>(argmax(result->row(0), result->logits.cols()));
    }
    ids.push_back(next);
    ASSERT_GT(ids.size(), prompt + 4);
    // One pass over tokens [0, n - 1), then the module on the same positions with the ids shifted by one.
    blocks.clear();
    std::span<const int32_t> all(ids);
    StepSequence main{.ids = all.first(ids.size() - 1), .blocks = &blocks, .logits = LogitsWanted::kNone};
    auto hidden = m.executor->run({&main, 1});
    ASSERT_TRUE(hidden.ok());
    StepSequence shifted{.ids = all.subspan(1), .blocks = &blocks, .logits = LogitsWanted::kAll};
    auto draft = m.executor->run_mtp({&shifted, 1}, hidden->hidden);
    ASSERT_TRUE(draft.ok());
    for (size_t i = prompt - 1; i + 2 < ids.size(); i++, drafts++)
      right += static_cast<int32_t>(argmax(draft->row(static_cast<int64_t>(i)), draft->logits.cols())) == ids[i + 2];
  }
  EXPECT_GT(drafts, 60);
  EXPECT_GE(static_cast<double>(right), 0.95 * static_cast<double>(drafts)) << right << " of " << drafts;
  RecordProperty("drafts", static_cast<int>(drafts));
  RecordProperty("right", static_cast<int>(right));
}

}  // namespace
}  // namespace dg
