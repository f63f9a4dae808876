#include "engine/output_thread.h"

#include <iterator>

namespace dg {

OutputState::OutputState(uint64_t number, const EngineRequest& request, const Tokenizer& tokenizer,
                         std::shared_ptr<RequestListener> listener)
    : handle(number), include_stop_text_(request.include_stop_text), listener_(std::move(listener)) {
  for (int i = 0; i < request.n; i++)
    answers_.push_back({StreamDetokenizer(tokenizer, request.skip_special, request.visible_special), StopMatcher(request.stop)});
}

OutputThread::OutputThread(std::function<void(uint64_t, int)> stop_answer)
    : stop_answer_(std::move(stop_answer)), thread_([this] { loop(); }) {}

OutputThread::~OutputThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ready_.notify_all();
  thread_.join();
}

void OutputThread::post(OutputBatch& batch) {
  {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return pending_.items.size() < kMaxItems; });
    if (pending_.empty()) {
      std::swap(pending_, batch);
    } else {
      auto base = static_cast<int32_t>(pending_.infos.size());
      for (OutputItem& item : batch.items)
        if (item.extra >= 0) item.extra += base;
      auto append = [](auto& to, auto& from) {
        to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
      };
      append(pending_.items, batch.items);
      append(pending_.infos, batch.infos);
      append(pending_.extras, batch.extras);
      append(pending_.ends, batch.ends);
    }
  }
  ready_.notify_one();
  batch.clear();
}

void OutputThread::flush() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return pending_.empty() && !busy_; });
}

void OutputThread::loop() {
  OutputBatch batch;
  std::unique_lock lock(mutex_);
  while (true) {
    ready_.wait(lock, [&] { return stop_ || !pending_.empty(); });
    if (pending_.empty()) return;  // stopped, and nothing is left
    std::swap(batch, pending_);
    busy_ = true;
    lock.unlock();
    handle(batch);
    batch.clear();
    lock.lock();
    busy_ = false;
    done_.notify_all();
  }
}

void OutputThread::handle(OutputBatch& batch) {
  for (OutputBatch::Extra& extra : batch.extras) {
    if (!extra.prompt_logprobs.empty()) extra.at->listener_->on_prompt_logprobs(extra.prompt_logprobs);
    if (!extra.embedding.empty()) extra.at->listener_->on_embedding(extra.embedding);
  }
  for (size_t i = 0; i < batch.items.size();) {
    // The tokens of one answer in one step stand together: one delta.
    size_t end = i + 1;
    while (end < batch.items.size() && batch.items[end].at == batch.items[i].at && batch.items[end].index == batch.items[i].index &&
           !batch.items[end - 1].finished)
      end++;
    infos_.clear();
    for (size_t k = i; k < end; k++) {
      const OutputItem& item = batch.items[k];
      if (item.extra >= 0) infos_.push_back(std::move(batch.infos[static_cast<size_t>(item.extra)]));
      else if (item.id >= 0) infos_.push_back({.id = item.id});
    }
    deliver(*batch.items[i].at, batch.items[i].index, infos_, std::span<const OutputItem>(batch.items).subspan(i, end - i));
    i = end;
  }
  for (OutputEnd& end : batch.ends) {
    OutputState& state = *end.state;
    end.usage.generated_tokens = 0;
    for (const OutputState::Answer& answer : state.answers_) end.usage.generated_tokens += answer.tokens;
    state.listener_->on_end(end.usage, end.error ? &*end.error : nullptr);
    state.listener_.reset();  // the listener may hold a connection: let it go now
  }
}

void OutputThread::deliver(OutputState& state, int index, std::span<const TokenInfo> tokens, std::span<const OutputItem> items) {
  OutputState::Answer& answer = state.answers_[static_cast<size_t>(index)];
  if (answer.finished) return;
  OutputDelta delta;
  delta.index = index;
  std::string text;
  size_t used = 0;
  for (const OutputItem& item : items) {
    if (item.id >= 0) {
      used++;
      if (item.stop_id < 0) text += answer.stop.push(answer.detokenizer.push(item.id));
    }
    if (answer.stop.stopped()) break;
    if (item.finished) {
      delta.finished = true;
      delta.reason = item.reason;
      delta.stop_id = item.stop_id;
    }
  }
  if (delta.finished && !answer.stop.stopped()) {
    text += answer.stop.push(answer.detokenizer.finish());
    if (!answer.stop.stopped()) text += answer.stop.finish();
  }
  if (answer.stop.stopped()) {
    if (!delta.finished) stop_answer_(state.handle, index);
    delta.finished = true;
    delta.reason = FinishReason::kStop;
    delta.stop_text = answer.stop.matched();
    delta.stop_id = -1;
    if (state.include_stop_text_) text += answer.stop.matched();
  }
  answer.tokens += static_cast<int64_t>(used);
  answer.finished = delta.finished;
  delta.tokens = tokens.first(std::min(used, tokens.size()));
  delta.text = text;
  state.listener_->on_delta(delta);
}

}  // namespace dg
