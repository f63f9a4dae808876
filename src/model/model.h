// Model: one architecture's hand-written forward over the op vocabulary of a Backend. It owns no memory: weights live in
// the WeightStore, the cache in the KvPool, activations in the Arena of the context.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/backend.h"
#include "kv/block_pool.h"
#include "model/config.h"
#include "model/weight_store.h"

namespace dg {

// The rows of one step, of any number of sequences, prefill chunks and decode rows mixed.
struct Batch {
  Tensor ids, positions, slots;  // (tokens) i32; slot = where the token's cache row is written
  std::span<const SequenceSlice> sequences;
  Tensor logit_rows;  // (n) i32: the rows whose logits are wanted
  int64_t tokens() const { return ids.rows(); }
};

struct Ctx {
  Backend& backend;
  Arena& arena;
  KvPool& kv;
  // For verification: called with the hidden state (tokens, hidden) after the embedding (0) and after layer i (i + 1).
  std::function<void(int, Tensor)> observe{};
};

struct ForwardResult {
  Tensor hidden;  // (tokens, hidden), after the final norm: what an MTP module takes
  Tensor logits;  // (logit rows, vocab); of a rank of several (rows, its share of the vocabulary)
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual void register_cache(CacheLayout& layout) = 0;
  virtual ForwardResult forward(Ctx& ctx, const Batch& batch) = 0;
  // The first token of this rank's logits.
  virtual int64_t first_logit() const = 0;

  // Multi-token prediction (DeepSeek-V3 report section 2.2). The row at position p takes `hidden` of position p and, as
  // ids, the token at p + 1; its logits predict the token at p + 2. Own cache parts, same slots as the main model.
  virtual int mtp_modules() const { return 0; }
  virtual ForwardResult mtp_forward(Ctx& ctx, const Batch& batch, Tensor hidden);
  // Parameters read to decode one token, without the embedding table and the MTP modules.
  virtual int64_t active_parameters() const = 0;
};

// Declares the weights of the model of `config` in `store`; afterwards store.status() holds any error.
// Unknown architectures are an error that lists the known ones.
Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, WeightStore& store);
std::vector<std::string> architecture_names();

}  // namespace dg
