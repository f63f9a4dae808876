// WeightStore: owns a model's weights on one device.
//
// Two phases. While a model is built it *declares* what it needs (name, shape, class); declaring checks the checkpoint's
// headers and fixes every format and byte, so `bytes()` is exact before anything is allocated, and a dry run stops here.
// Then load() allocates once and reads the shards in file order with several threads, converting on the way; it fills in
// the Weight and Tensor views that were declared, which must stay at their addresses.
//
// A matrix is kept as published, converted (WeightPolicy), or prepared: in the layout that the backend wants for its products
// (Backend::prepare). Rows that stay as they are go by pread to their final place; others pass through buffers of about a
// megabyte per thread, so peak memory is the model's bytes plus a few MiB. How the checkpoint stores a matrix is the matter
// of weight_source.h.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/result.h"
#include "device/backend.h"
#include "io/tensor_index.h"
#include "model/load_placement.h"
#include "model/quant_config.h"
#include "model/weight_part.h"

namespace dg {

// Which format a matrix is kept in depends on its class.
enum class WeightClass { kEmbedding, kHead, kAttention, kMlp, kExpert, kSharedExpert, kRouter };
inline constexpr int kWeightClassCount = 7;
const char* weight_class_name(WeightClass c);

// How a matrix is read. kProduct: by linear, linear_glu, moe_experts. kRows: row by row (embedding, MLA's kv_b). A matrix
// declared for both (tied embedding) is kept once, in the layout for products.
enum class WeightUse { kProduct, kRows };

struct WeightPolicy {
  // Format of attention, MLP, expert and shared-expert matrices; nullptr: as published. The router stays as published.
  const Format* linear = nullptr;
  const Format* head = nullptr;  // of the embedding and the head; nullptr: as published
  bool float32 = false;          // everything in f32: the exact path
};

struct LoadOptions {
  int threads = 0;  // 0: number of cores, at most 8
  bool progress = false;
  LoadPlacement placement{};  // of row ranges on memory nodes; default: none
  // Binds the calling thread to CPUs (pin_current_thread); replaced in tests.
  std::function<bool(const std::vector<int>&)> bind{};
  const std::atomic<bool>* cancelled = nullptr;  // set by another thread: load() fails soon
};

class WeightStore {
 public:
  // `index` may be null: then shapes come from the model alone and every matrix counts as published in `assumed`
  // (planning from config.json only).
  WeightStore(Backend& backend, const TensorIndex* index, WeightPolicy policy, const Format* assumed = nullptr);
  ~WeightStore();
  // quantization_config of the checkpoint; before anything is declared.
  void set_quantization(const QuantConfig& config) { quantization_ = config; }
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  // --- declare; the first problem is kept for status() ---
  // (out, in) is the published shape, of which `part` is kept.
  void matrix(Weight* to, const std::string& name, int64_t out, int64_t in, WeightClass weight_class, WeightUse use = WeightUse::kProduct,
              const WeightPart& part = {});
  // Elements [first, first + count) of a vector of `size`, in f32; count -1: all.
  void vector(Tensor* to, const std::string& name, int64_t size, int64_t first = 0, int64_t count = -1);
  // Where matrix() may cut; 1 x 1 of a matrix that is missing (matrix() will say so).
  WeightCuts cuts(const std::string& name, int64_t out, int64_t in, WeightClass weight_class) const;
  void constant(Tensor* to, std::vector<float> values);  // e.g. rotary frequencies
  // Two declared matrices that one op reads together (experts of a layer): an error if they are kept in different formats or,
  // with `columns` and found by load(), with their columns in different orders.
  void alike(const std::string& first, const std::string& second, bool columns);
  bool has(const std::string& name) const;                                             // in the checkpoint (true when planning)
  void ignore(const std::string& name) { ignored_.insert(name); }                      // present but not needed
  void ignore_prefix(const std::string& prefix) { ignored_prefixes_.insert(prefix); }  // which ends with a dot
  void fail(Error error);
  // First declaration error, or a tensor of the checkpoint that nothing declared.
  Result<void> status() const;

  // --- figures, known after declaring ---
  int64_t bytes() const { return bytes_; }
  struct ClassTotal {
    int64_t parameters = 0, bytes = 0, count = 0;
  };
  const ClassTotal& total(WeightClass c) const { return totals_[static_cast<size_t>(c)]; }
  const ClassTotal& vector_total() const { return totals_[kWeightClassCount]; }
  // Bytes by stored format name.
  const std::unordered_map<std::string, int64_t>& bytes_by_format() const { return bytes_by_format_; }

  // What was declared, in order: vectors have out 1; constants are left out.
  struct Declared {
    std::string name;
    int64_t out, in;
    bool is_vector;
    const Format* format;  // as it is kept
    bool prepared;         // repacked by the backend
  };
  std::vector<Declared> declared() const;

  // Allocates and reads. The error names file and tensor.
  Result<void> load(const LoadOptions& options);
  // Allocates and makes random weights, where no index was given.
  Result<void> load_dummy(const LoadOptions& options);
  // Gives every declared view an address without reading anything (dry runs).
  Result<void> bind_dry();

 private:
  struct Item;
  struct Task;
  struct Buffers;
  // Decides format, layout and bytes of a matrix from its source, policy and uses; checks that the backend takes it.
  Result<void> settle(Item& item) const;
  const Format& planned_format(WeightClass weight_class) const;
  void count(const Item& item, int sign);
  Result<void> allocate();
  void bind();
  Result<void> check_columns() const;
  std::vector<std::vector<Task>> make_tasks(const LoadPlacement& placement) const;
  Result<void> run_task(const Task& task, Buffers& buffers) const;
  Result<void> convert(const Item& item, const Weight& from, std::byte* data, std::byte* scales, Buffers& buffers) const;
  Result<void> load_columns(const Item& item) const;
  std::byte* place(int64_t offset) const { return static_cast<std::byte*>(memory_->data()) + offset; }
  std::string where(const TensorInfo& info) const;
  std::string where(const Item& item) const;
  bool belongs(const TensorInfo& info) const;
  bool is_zero_bias(const TensorInfo& info) const;

  Backend& backend_;
  const TensorIndex* index_;
  WeightPolicy policy_;
  QuantConfig quantization_;
  const Format* assumed_;
  std::vector<Item> items_;
  std::vector<std::pair<size_t, size_t>> same_columns_;  // of items_, both in act order
  std::unordered_map<std::string, size_t> by_name_;
  std::unordered_set<std::string> ignored_, ignored_prefixes_;
  std::unordered_map<std::string, int64_t> bytes_by_format_;
  ClassTotal totals_[kWeightClassCount + 1];
  int64_t bytes_ = 0;
  std::unique_ptr<Error> error_;
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace dg
